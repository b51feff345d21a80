"""Rules over paths that say how leaves are read as matrices, and those for Flax's names."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import Array

from optax_zoo._core.layouts import layout
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.views import FALLBACK, KERNEL, MatrixView, as_matrix_view, is_fallback, is_view

Rule: TypeAlias = tuple[Any, ...]
"""(pattern, view) or (pattern, view, number of axes)."""

HEADS = ("*head", "logits", "classifier", "*unembed*")
"""Usual names of output heads."""

EMBEDDINGS = ("*embed*", "wte", "wpe")
"""Usual names of embeddings; where heads may be, those come first."""

EMBEDDINGS_AND_HEADS = EMBEDDINGS + HEADS

VECTORS = ("bias", "scale", "offset", "mean", "var", "count")
"""Usual names of leaves that are no matrices, whatever their number of axes."""

_PROJECTION, _OUT = MatrixView(0, (1, 2)), MatrixView((0, 1), 2)

ATTENTION = (*((f"{name}/kernel", _PROJECTION, 3) for name in ("query", "key", "value")), ("out/kernel", _OUT, 3))
"""Rules for Flax's projections, (in, heads, width) and (heads, width, out)."""

CONVOLUTION = "*conv*/kernel"

_STORES = ("value", "raw_value")
"""How frameworks end the path of a variable that wraps its array."""


def mentions(path: str, patterns: str | Sequence[str]) -> bool:
    """Whether some part of a path such as "decoder/lm_head/kernel" fits a shell pattern, compared without case."""
    return any(fnmatch.fnmatchcase(part, p.lower()) for part in path.lower().split("/") for p in as_patterns(patterns))


def as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several as a tuple."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def without_store(path: str) -> str:
    """The path of a variable, from that of the array which it wraps."""
    parts = path.split("/")
    while len(parts) > 1 and parts[-1].lower() in _STORES:
        parts.pop()
    return "/".join(parts)


def fits(path: str, pattern: str) -> bool:
    """Whether consecutive parts of the path match those of the pattern, the last one the last or before a variable's
    store: "query/kernel" fits "block_0/attention/query/kernel"; a pattern that ends in "/" fits everything inside."""
    parts, wanted = without_store(path.lower()).split("/"), pattern.lower().split("/")
    inside = wanted[-1] == ""
    wanted = wanted[:-1] if inside else wanted
    starts = range(len(parts) - len(wanted) + 1)
    return any(
        (inside or start + len(wanted) == len(parts))
        and all(map(fnmatch.fnmatchcase, parts[start : start + len(wanted)], wanted))
        for start in starts
    )


@dataclasses.dataclass(frozen=True)
class MatrixRules:
    """A `dimension_numbers` made of rules, of which the first that fits decides; see `matrix_rules`.

    They are no function, so `optax.inject_hyperparams` does not take them for a schedule.
    """

    rules: tuple[Rule, ...]
    stacked: tuple[str, ...] = ()

    def view_of(self, path: str, leaf: Array) -> Any:
        """The view of a leaf, or "fallback".

        Raises:
          ValueError: no rule fits, or one that does not fit a layer of a stacked leaf; the sentence names the leaf.
        """
        layers = any(fits(path, pattern) for pattern in self.stacked)
        ndim = jnp.ndim(leaf) - layers
        for pattern, view, *axes in self.rules:
            if fits(path, pattern) and ndim in (axes or (ndim,)):
                return _behind_layers(view, jnp.shape(leaf), path) if layers and is_view(view) else view
        raise ValueError(
            f"{speaker()}: no rule covers the leaf at {path!r} of shape {jnp.shape(leaf)}; add one, such as"
            f" ({path!r}, MatrixView(...)) or ({path!r}, {FALLBACK!r})"
        )


def _behind_layers(view: Any, shape: tuple[int, ...], path: str) -> MatrixView:
    """The view of a leaf whose first axis counts layers, each of which has `view`."""
    inside = layout(view, shape[1:], f"{speaker()}: a layer of the leaf at {path!r}")
    reduction, output, batch = ([axis + 1 for axis in axes] for axes in (inside.reduction, inside.output, inside.batch))
    split = as_matrix_view(view, len(shape) - 1).split
    return MatrixView(reduction, output, [0, *batch], split, inside.heads)


@method
def matrix_rules(*rules: Rule | MatrixRules, stacked: str | Sequence[str] = ()) -> MatrixRules:
    """How leaves are read as matrices, by path: the `dimension_numbers` of every matrix method.

        matrix_rules(("qkv/kernel", MatrixView(split=3)), ("router/", "fallback"), flax_rules())

    Args:
      *rules: (pattern, view), of which the first that fits a leaf decides, or other `MatrixRules`, whose rules follow
        here. A pattern is compared without case with consecutive parts of the end of a path, by shell patterns:
        "query/kernel", "*conv*/kernel", "*"; one that ends in "/" fits everything inside. A view is a `MatrixView`, an
        `optax.contrib.MuonDimensionNumbers`, None (all axes but the last are reduced over) or "fallback". A third
        entry restricts the rule to leaves of so many axes.
      stacked: a pattern, or several, of leaves whose first axis counts layers, as `flax.linen.scan` and `nnx.vmap` make
        them; their views are those of one layer.

    Returns:
      `MatrixRules`. A leaf that no rule covers is an error that names it.

    Raises:
      TypeError: something else than rules.
    """
    flat: list[Rule] = []
    patterns = [*as_patterns(stacked)]
    for rule in rules:
        if isinstance(rule, MatrixRules):
            flat += rule.rules
            patterns += rule.stacked
            continue
        if not isinstance(rule, tuple) or len(rule) not in (2, 3) or not isinstance(rule[0], str):
            raise TypeError(f"matrix_rules: a rule must be (pattern, view) or (pattern, view, axes), got {rule!r}")
        if not (rule[1] is None or is_view(rule[1]) or is_fallback(rule[1])):
            wanted = f"a MatrixView, None or {FALLBACK!r}"
            raise TypeError(f"matrix_rules: the view of {rule[0]!r} must be {wanted}, got {rule[1]!r}")
        flat.append((rule[0], KERNEL if rule[1] is None else rule[1], *rule[2:]))
    return MatrixRules(tuple(flat), tuple(patterns))


@method
def flax_rules(*, per_head: bool = False, stacked: str | Sequence[str] = ()) -> MatrixRules:
    """Rules for the names that Flax gives, Linen and NNX alike.

    Dense, Einsum-free attention, convolutions, recurrent cells and LoRA factors are matrices; embeddings, output heads
    (by the usual names), biases, scales and statistics are left to the fallback optimizer. A kernel of another kind,
    such as a `DenseGeneral` of three axes, is covered by no rule: say before these rules what it is.

    Args:
      per_head: whether each head of an attention projection is a matrix of its own.
      stacked: see `matrix_rules`.
    """
    apart = {_PROJECTION: MatrixView(0, 2, batch=1), _OUT: MatrixView(1, 2, batch=0)}
    return matrix_rules(
        *((pattern, FALLBACK) for pattern in (*VECTORS, "b")),
        *((pattern + "/", FALLBACK) for pattern in EMBEDDINGS_AND_HEADS),
        *((pattern, apart[view] if per_head else view, axes) for pattern, view, axes in ATTENTION),
        (CONVOLUTION, KERNEL),
        *((pattern, KERNEL, 2) for pattern in ("kernel", "recurrent_kernel", "lora_a", "lora_b", "w", "w_*")),
        *(("kernel", KERNEL, ndim) for ndim in (4, 5)),
        stacked=stacked,
    )
