"""Layer-wise Linear Mode Connectivity.

Linara Adilova, Maksym Andriushchenko, Michael Kamp, Asja Fischer, Martin Jaggi, 2023, arXiv:2307.06966.
Between two trained networks lies a barrier of loss, but between networks that differ in one layer there is none.

Differs from the authors' code: nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from optax_zoo._core.hyper import Scalar, choice, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import Choice
from optax_zoo.merging._leaves import Group, Matched, one_leaf

Default = Literal["a", "b"]
Baseline = Literal["mean", "linear"]
LossFn = Callable[[PyTree], Any]


@one_leaf()
def leaf(ws: list[Array], *, alpha: Array) -> Array:
    """(1 - alpha) a + alpha b."""
    a, b = ws
    return (1.0 - alpha) * a + alpha * b


@method
def interpolate(a: PyTree, b: PyTree, alpha: Scalar) -> PyTree:
    """(1 - alpha) a + alpha b.

    Args:
      a: a tree.
      b: another like it.
      alpha: 0 is `a` and 1 is `b`; outside of [0, 1] the line goes on.

    Returns:
      A tree in the dtypes of `a`, computed in float32 or better; integer leaves are those of `a`.

    Raises:
      ValueError: trees that differ (the first leaf is named), NaN in one of them, or an infinite `alpha`.
    """
    return _pair(a, b).merge(leaf, alpha=number("alpha", alpha, "(-inf, inf)"))


@method
def layerwise_interpolate(a: PyTree, b: PyTree, alpha: Scalar, layers: Choice, default: Default = "a") -> PyTree:
    """Interpolates between two trees in some layers (arXiv:2307.06966).

    Args:
      a: a tree.
      b: another like it.
      alpha: 0 is `a` and 1 is `b`; outside of [0, 1] the line goes on.
      layers: the leaves that are interpolated: a (prefix) tree of bools, such as `{"conv": True, "head": False}`,
        f(path, leaf) with a path such as "conv/kernel", or f(tree) -> bools.
      default: the tree that the other leaves come from.

    Returns:
      A tree in the dtypes of `a`, computed in float32 or better; integer leaves among `layers` are those of `a`.

    Raises:
      ValueError: trees that differ (the first leaf is named), NaN in one of them, an infinite `alpha`, no entry in
        `layers` for some leaf, or an unknown `default`.
    """
    choice("default", default, Default)
    matched = _pair(a, b)
    mixed = matched.leaves.match("the result", interpolate(a, b, alpha))
    rest = matched.leaves.match(default, a if default == "a" else b)
    chosen = matched.each("layers", layers)
    return matched.leaves.unflatten([m if use else x for m, x, use in zip(mixed, rest, chosen, strict=True)])


@method
def lmc_curve(
    loss_fn: LossFn, a: PyTree, b: PyTree, num: int = 11, layers: Choice | None = None, default: Default = "a"
) -> tuple[Array, Array]:
    """Losses on the line between two trees (arXiv:2307.06966).

    Args:
      loss_fn: loss of a tree.
      a: the tree at 0.
      b: the tree at 1.
      num: points, both ends included, >= 2.
      layers: as in `layerwise_interpolate`; None: all.
      default: as there.

    Returns:
      The positions in [0, 1] and the losses there, of shape (num,).

    Raises:
      ValueError: as in `layerwise_interpolate`, or a `num` below 2.
    """
    number("num", num, "[2, inf)")
    positions = np.linspace(0.0, 1.0, num)
    everywhere = True if layers is None else layers
    losses = [loss_fn(layerwise_interpolate(a, b, float(alpha), everywhere, default)) for alpha in positions]
    return jnp.asarray(positions), jnp.stack([jnp.asarray(loss) for loss in losses])


@method
def lmc_barrier(
    loss_fn: LossFn,
    a: PyTree,
    b: PyTree,
    num: int = 3,
    layers: Choice | None = None,
    default: Default = "a",
    *,
    baseline: Baseline = "mean",
) -> Array:
    """The highest rise of the loss on the line between two trees (arXiv:2307.06966).

    Args:
      loss_fn: loss of a tree.
      a: one tree.
      b: the other.
      num: points, both ends included, >= 3; 3 measures at the midpoint, as the authors do.
      layers: the leaves that are interpolated, as in `layerwise_interpolate`; None: all. The ends whose losses make
        the baseline are the whole trees all the same.
      default: the tree that the other leaves come from.
      baseline: what counts as no rise: the mean of the losses of both ends, or their "linear" interpolation.

    Returns:
      The largest loss above the baseline among the inner points; negative where the loss dips.

    Raises:
      ValueError: as in `layerwise_interpolate`, a `num` below 3, or an unknown `baseline`.
    """
    choice("baseline", baseline, Baseline)
    number("num", num, "[3, inf)")
    at, losses = (x[1:-1] for x in lmc_curve(loss_fn, a, b, num, layers, default))
    first, last = jnp.asarray(loss_fn(a)), jnp.asarray(loss_fn(b))
    at = at.astype(losses.dtype)
    ends = (first + last) / 2.0 if baseline == "mean" else (1.0 - at) * first + at * last
    return jnp.max(losses - ends)


def _pair(a: PyTree, b: PyTree) -> Matched:
    return Matched(Group(("a", "b"), (a, b)))


PAPER = register(
    Paper(
        name="layerwise_interpolate",
        title="Layer-wise Linear Mode Connectivity",
        authors=("Adilova, Linara", "Andriushchenko, Maksym", "Kamp, Michael", "Fischer, Asja", "Jaggi, Martin"),
        year=2023,
        arxiv="2307.06966",
        kind="merge",
        make=layerwise_interpolate,
    )
)
BARRIER = register(dataclasses.replace(PAPER, name="lmc_barrier", kind="function", make=lmc_barrier))
