"""Matrix methods update matrices; embeddings, heads, gains and biases go to AdamW. Here is who goes where."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax import numpy as jnp

from optax_zoo._core.finish import Decoupling, Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, check_range, debias, ema
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import speaker
from optax_zoo._core.notes import note
from optax_zoo._core.rules import EMBEDDINGS_AND_HEADS, VECTORS, fits, mentions
from optax_zoo._core.slots import PerParameter, squares, zeros
from optax_zoo._core.trees import Leaves, PyTree
from optax_zoo._core.views import Choice, DimensionNumbers, choose, choose_views, is_fallback, is_view, path_name

HIDDEN = "hidden"
"""A `muon_mask` in one word: matrices that are neither embeddings nor output heads, `muon_mask_by_path()`."""


def muon_mask_by_path(
    exclude: str | Sequence[str] = EMBEDDINGS_AND_HEADS, *, min_ndim: int = 2
) -> Callable[[str, Array], bool]:
    """A `muon_mask` that leaves embeddings, output heads, biases and scales to Adam by their names.

    Args:
      exclude: a shell pattern, or several, compared without case with each part of a path such as
        "decoder/lm_head/kernel".
      min_ndim: leaves with fewer axes go to Adam too (2: matrices and convolution kernels are
        orthogonalised).

    Returns:
      A function of (path, leaf), True where a leaf is orthogonalised.
    """

    def mask(path: str, leaf: Array) -> bool:
        vector = any(fits(path, name) for name in VECTORS)
        return not (vector or mentions(path, exclude)) and jnp.ndim(leaf) >= min_ndim

    return mask


class AuxiliaryAdamState(NamedTuple):
    """State of AdamW beside a matrix method."""

    count: Array  # steps taken
    mu: PerParameter  # first moment
    nu: PerParameter  # second moment


class Adam(NamedTuple):
    """AdamW's arguments, which matrix methods call `adam_learning_rate`, `adam_b1` and so on."""

    learning_rate: ScalarOrSchedule | None  # None: that of the matrices
    b1: ScalarOrSchedule  # decay of the first moment, in [0, 1)
    b2: ScalarOrSchedule  # decay of the second moment, in [0, 1)
    eps: ScalarOrSchedule  # added to the root after bias correction, at least 0
    weight_decay: ScalarOrSchedule  # decoupled, multiplied by the learning rate


def with_auxiliary_adam(
    matrices: optax.GradientTransformation,
    adam: Adam,
    learning_rate: ScalarOrSchedule,
    muon_mask: Choice,
    dimension_numbers: DimensionNumbers,
    mask: Mask | None,
    decay: Decoupling = "lr",
) -> optax.GradientTransformationExtraArgs:
    """`matrices` on the leaves that `muon_mask` chooses, AdamW on the others.

    Args:
      matrices: a finished optimizer of matrices.
      adam: how AdamW is set.
      learning_rate: of the matrices.
      muon_mask: True for leaves of `matrices`: a (prefix) tree, `f(path, leaf)`, `f(params)` or "hidden". None: leaves
        of two axes, and those for which a tree, a function or rules of `dimension_numbers` have a view.
      dimension_numbers: see `optax_zoo._core.views`; "fallback" in the place of a view leaves a leaf to AdamW.
      mask: which leaves decay.
      decay: of AdamW, see `finish`.

    Returns:
      Its state is that of an `optax.partition` with the labels "matrix" and "adam".
    """
    rate = learning_rate if adam.learning_rate is None else adam.learning_rate
    check_range("adam_learning_rate", rate, "[0, inf)")
    check_range("adam_weight_decay", adam.weight_decay, "[0, inf)")
    rest = finish(_scale_by_adam(adam.b1, adam.b2, adam.eps), rate, adam.weight_decay, mask, decay=decay)
    return by_kind(matrices, rest, dimension_numbers=dimension_numbers, muon_mask=muon_mask)


def by_kind(
    matrices: optax.GradientTransformation,
    adam: optax.GradientTransformation,
    *,
    dimension_numbers: DimensionNumbers,
    muon_mask: Choice = None,
) -> optax.GradientTransformationExtraArgs:
    """`matrices` on leaves that are matrices, `adam` on the others; arguments as in `with_auxiliary_adam`.

    An `optax.partition` that takes None for a leaf without gradient.
    """
    name = speaker()

    def masked(params: PyTree) -> list[bool] | None:
        if muon_mask is None:
            return None
        hidden = isinstance(muon_mask, str) and muon_mask == HIDDEN
        chosen = choose(name, "muon_mask", muon_mask_by_path() if hidden else muon_mask, params)
        for entry in chosen:
            if not isinstance(entry, bool | np.bool_):
                raise TypeError(f"{name}: muon_mask must be {HIDDEN!r} or hold True or False, got {entry!r}")
        return chosen

    def labels(params: PyTree) -> PyTree:
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        views = [None] * len(flat)
        if not is_view(dimension_numbers):
            views = choose_views(name, dimension_numbers, params)
        chosen = masked(params) or [
            not is_fallback(view) and (view is not None or jnp.ndim(leaf) == 2)
            for (_, leaf), view in zip(flat, views, strict=True)
        ]
        for (path, leaf), yes in zip(flat, chosen, strict=True):
            note(name, path_name(path), jnp.shape(leaf), "a matrix" if yes else "left to adam")
        return jax.tree.unflatten(treedef, ["matrix" if yes else "adam" for yes in chosen])

    kinds: dict[Any, optax.GradientTransformationExtraArgs] = {
        "matrix": optax.with_extra_args_support(matrices),
        "adam": optax.with_extra_args_support(adam),
    }

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        leaves = Leaves(name, "the gradient", updates)
        absent = [path for path, leaf in zip(leaves.paths, leaves.values, strict=True) if leaf is None]
        if params is None and absent:
            raise ValueError(f"{name}: the gradient at {absent[0]} is None; pass params, which say who updates it")
        points = None if params is None else leaves.match("params", params)
        labelled = leaves.match("the labels", labels(updates if params is None else params))
        inner_states, new = {}, leaves.values
        for kind, tx in kinds.items():
            # A leaf that is None in the parameters too has no kind.
            mine = [label in (kind, None) for label in labelled]
            masked = leaves.unflatten(_masked(leaves.values, mine))
            masked_params = None if points is None else leaves.unflatten(_masked(points, mine))
            old = state.inner_states[kind]
            out, after = tx.update(masked, old.inner_state, masked_params, **extra)
            inner_states[kind] = old._replace(inner_state=after)
            new = [u if yes else v for u, v, yes in zip(leaves.match("updates", out), new, mine, strict=True)]
        return leaves.unflatten(new), state._replace(inner_states=inner_states)

    return optax.GradientTransformationExtraArgs(optax.partition(kinds, labels).init, update)


def _masked(leaves: Sequence[Any], mine: Sequence[bool]) -> list[Any]:
    return [leaf if yes else optax.MaskedNode() for leaf, yes in zip(leaves, mine, strict=True)]


def _scale_by_adam(b1: Any, b2: Any, eps: Any) -> optax.GradientTransformationExtraArgs:
    def step(h: Any, s: AuxiliaryAdamState) -> dict[str, Any]:
        return {"bias1": debias(h.adam_b1, h.t), "bias2": debias(h.adam_b2, h.t)}

    @leafwise(
        AuxiliaryAdamState,
        hyper={"adam_b1": b1, "adam_b2": b2, "adam_eps": eps},
        ranges={"adam_b1": "[0, 1)", "adam_b2": "[0, 1)", "adam_eps": "[0, inf)"},
        step=step,
        mu=zeros(),
        nu=squares(),
    )
    def rule(g: Array, s: AuxiliaryAdamState, h: Any) -> tuple[Array, AuxiliaryAdamState]:
        mu = ema(s.mu, g, h.adam_b1)
        nu = ema(s.nu, abs_sq(g), h.adam_b2)
        u = (mu / h.bias1) / (jnp.sqrt(nu / h.bias2) + h.adam_eps)
        return u, s._replace(mu=mu, nu=nu)

    return rule
