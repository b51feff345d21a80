"""Rules over paths that say how leaves are read as matrices, and those for Flax's names."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import Array

from optax_zoo._core.naming import method, speaker
from optax_zoo._core.views import FALLBACK, KERNEL, MatrixView, is_fallback, is_view

Rule: TypeAlias = tuple[Any, ...]
"""(pattern, view) or (pattern, view, number of axes)."""

EMBEDDINGS_AND_HEADS = ("*embed*", "wte", "wpe", "*head", "logits", "classifier")
"""Usual names of embeddings and output heads."""

_VECTORS = ("bias", "scale", "b", "offset", "mean", "var", "count")
_STORES = ("value", "raw_value")
"""How frameworks end the path of a variable that wraps its array."""


def names(path: str) -> list[str]:
    """The parts of a path such as "decoder/lm_head/kernel" in lower case."""
    return path.lower().split("/")


def fits(path: str, pattern: str) -> bool:
    """Whether consecutive parts of the path match those of the pattern, the last one the last or before a variable's
    store: "query/kernel" fits "block_0/attention/query/kernel"; a pattern that ends in "/" fits everything inside."""
    parts, wanted = names(path), pattern.lower().split("/")
    inside = wanted[-1] == ""
    wanted = wanted[:-1] if inside else wanted
    while len(parts) > 1 and parts[-1] in _STORES:
        parts.pop()
    starts = range(len(parts) - len(wanted) + 1)
    return any(
        (inside or start + len(wanted) == len(parts))
        and all(map(fnmatch.fnmatchcase, parts[start : start + len(wanted)], wanted))
        for start in starts
    )


@dataclasses.dataclass(frozen=True)
class MatrixRules:
    """A `dimension_numbers` made of rules, of which the first that fits decides; see `matrix_rules`."""

    rules: tuple[Rule, ...]
    stacked: tuple[str, ...] = ()

    def __call__(self, path: str, leaf: Array) -> Any:
        """The view of a leaf, or "fallback".

        Raises:
          ValueError: no rule fits; the sentence names the leaf.
        """
        layers = any(fits(path, pattern) for pattern in self.stacked)
        ndim = jnp.ndim(leaf) - layers
        for pattern, view, *axes in self.rules:
            if fits(path, pattern) and ndim in (axes or (ndim,)):
                return _behind_layers(view, ndim) if layers and isinstance(view, MatrixView) else view
        raise ValueError(
            f"{speaker()}: no rule covers the leaf at {path!r} of shape {jnp.shape(leaf)}; add one, such as"
            f" ({path!r}, MatrixView(...)) or ({path!r}, {FALLBACK!r})"
        )


def _behind_layers(view: MatrixView, ndim: int) -> MatrixView:
    """The view of a leaf whose first axis counts layers, each of which has `view`."""

    def moved(axes: Any) -> Any:
        return None if axes is None else [axis % ndim + 1 for axis in ([axes] if isinstance(axes, int) else axes)]

    return view._replace(
        reduction=moved(view.reduction), output=moved(view.output), batch=[0, *(moved(view.batch) or [])]
    )


@method
def matrix_rules(*rules: Rule | MatrixRules, stacked: Sequence[str] = ()) -> MatrixRules:
    """How leaves are read as matrices, by path: the `dimension_numbers` of every matrix method.

        matrix_rules(("qkv/kernel", MatrixView(split=3)), ("router/", "fallback"), flax_rules())

    Args:
      *rules: (pattern, view), of which the first that fits a leaf decides, or other `MatrixRules`, whose rules follow
        here. A pattern is compared without case with consecutive parts of the end of a path, by shell patterns:
        "query/kernel", "*conv*/kernel", "*"; one that ends in "/" fits everything inside. A view is a `MatrixView`, an
        `optax.contrib.MuonDimensionNumbers`, None (all axes but the last are reduced over) or "fallback". A third
        entry restricts the rule to leaves of so many axes.
      stacked: patterns of leaves whose first axis counts layers, as `flax.linen.scan` and `nnx.vmap` make them; their
        views are those of one layer.

    Returns:
      A function of (path, leaf). A leaf that no rule covers is an error that names it.

    Raises:
      TypeError: something else than rules.
    """
    flat: list[Rule] = []
    patterns = [*stacked]
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
def flax_rules(*, per_head: bool = False, stacked: Sequence[str] = ()) -> MatrixRules:
    """Rules for the names that Flax gives, Linen and NNX alike.

    Dense, Einsum-free attention, convolutions, recurrent cells and LoRA factors are matrices; embeddings, output heads
    (by the usual names), biases, scales and statistics are left to the fallback optimizer. A kernel of another kind,
    such as a `DenseGeneral` of three axes, is covered by no rule: say before these rules what it is.

    Args:
      per_head: whether each head of an attention projection is a matrix of its own.
      stacked: see `matrix_rules`.
    """
    projection, out = MatrixView(0, (1, 2)), MatrixView((0, 1), 2)
    if per_head:
        projection, out = MatrixView(0, 2, batch=1), MatrixView(1, 2, batch=0)
    return matrix_rules(
        *((pattern, FALLBACK) for pattern in _VECTORS),
        *((pattern + "/", FALLBACK) for pattern in EMBEDDINGS_AND_HEADS),
        *((f"{name}/kernel", projection, 3) for name in ("query", "key", "value")),
        ("out/kernel", out, 3),
        ("*conv*/kernel", KERNEL),
        *((pattern, KERNEL, 2) for pattern in ("kernel", "recurrent_kernel", "lora_a", "lora_b", "w", "w_*")),
        *(("kernel", KERNEL, ndim) for ndim in (4, 5)),
        stacked=stacked,
    )
