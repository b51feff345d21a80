"""The second moment of a matrix from the means of its rows and columns: which axes, and right on every device."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block
from optax_zoo._core.hyper import Decay, Scalar, ema, known_integer, structural
from optax_zoo._core.layouts import layout
from optax_zoo._core.naming import speaker
from optax_zoo._core.notes import note
from optax_zoo._core.slots import Statistic, squares
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import DimensionNumbers, is_fallback, is_view, map_views

Axes: TypeAlias = tuple[int, ...]
Shape: TypeAlias = tuple[int, ...]

LEAST = structural(128)


@dataclasses.dataclass(frozen=True)
class Factoring:
    """How the axes of one leaf are chosen.

    Attributes:
      view: the axes (rows, columns); None: the second largest and the largest one.
      least: the least size of either; None: the leaf is not factored.
    """

    view: tuple[Axes, Axes] | None
    least: int | None

    def axes(self, shape: Shape) -> tuple[Axes, Axes] | None:
        """The axes (rows, columns) of a leaf of this shape; None where each entry keeps its own second moment."""
        if self.least is None or len(shape) < 2:
            return None
        *_, second, first = np.argsort(shape, kind="stable").tolist()
        rows, columns = self.view or ((second,), (first,))
        sizes = (math.prod(shape[axis] for axis in axes) for axes in (rows, columns))
        return (rows, columns) if min(sizes) >= max(self.least, 1) else None


def factorings(factored: bool, least: Any, dimension_numbers: DimensionNumbers) -> Callable[[PyTree], PyTree]:
    """A function of a tree that returns a tree of `Factoring`, for `leafwise(static={"factoring": ...})`.

    Args:
      factored: False: no leaf is.
      least: `min_dim_size_to_factor`.
      dimension_numbers: views of the leaves of two axes or more; their batch axes are never averaged over.

    Raises:
      TypeError: `least` is no integer.
      ValueError: `least` is negative; in the function, a view that does not fit its leaf.
    """
    name = speaker()
    least = known_integer("min_dim_size_to_factor", least, "[0, inf)")

    def factoring(where: str, path: str, leaf: Any, view: Any) -> Factoring:
        chosen = Factoring(None, least if factored and not is_fallback(view) else None)
        if is_view(view) and leaf.ndim >= 2:
            axes = layout(view, leaf.shape, where)
            if axes.split or axes.heads > 1:
                raise ValueError(f"{where} has a view with blocks; its rows have one mean, pass the parts as leaves")
            chosen = dataclasses.replace(chosen, view=(axes.reduction, axes.output))
        found = chosen.axes(leaf.shape)
        note(name, path, leaf.shape, f"factored by axes {found[0]} and {found[1]}" if found else "not factored")
        return chosen

    return lambda tree: map_views(name, dimension_numbers, tree, factoring)


def second_moments(factored: bool) -> dict[str, Any]:
    """The fields v_row, v_col and v of the state: of each leaf either the first two or the last."""
    if not factored:
        return {"v_row": None, "v_col": None, "v": squares()}
    name = speaker()

    def pair(leaf: Array, factoring: Factoring) -> tuple[Axes, Axes] | None:
        if mesh.is_manual() and jnp.ndim(leaf) > 1 and mesh.varying_axes(leaf):
            raise ValueError(
                f"{name}: a leaf of shape {leaf.shape} is one device's block, which does not tell whether the leaf is"
                " factored; call init outside of shard_map"
            )
        return factoring.axes(jnp.shape(leaf))

    def mean_over(side: int) -> Statistic:
        def first(leaf: Array, *, factoring: Factoring, **_: Any) -> Array | None:
            axes = pair(leaf, factoring)
            return None if axes is None else squares().init(jnp.sum(leaf, axes[side]))

        return Statistic(first)

    def entries(leaf: Array, *, factoring: Factoring, **_: Any) -> Array | None:
        return squares().init(leaf) if pair(leaf, factoring) is None else None

    return {"v_row": mean_over(1), "v_col": mean_over(0), "v": Statistic(entries)}


@dataclasses.dataclass(frozen=True)
class Factors:
    """A leaf, or one device's block of it, and the axes of its rows and columns."""

    block: Block
    rows: Axes
    columns: Axes
    where: str

    def mean(self, x: Array, axes: Axes) -> Array:
        """Over these axes of the whole leaf, which stay with size 1."""
        return self.block.sum(x, axes) / math.prod(self.block.whole[axis] for axis in axes)

    def averaged(self, kept: Array, x: Array, axes: Axes, decay: Scalar | Decay) -> tuple[Array, Array]:
        """The running average of the mean over these axes: as it is kept, and as it meets the block.

        Inside shard_map the average may be kept whole on every device, or cut as the other axes of the leaf are.
        """
        rest = [axis for axis in range(len(self.block.shape)) if axis not in axes]
        own = Block(tuple(self.block.shape[axis] for axis in rest), tuple(self.block.cut[axis] for axis in rest))
        mean = jnp.squeeze(self.mean(x, axes), axes)
        if kept.shape == own.shape:
            average = local = ema(kept, mean, decay)
        elif kept.shape == own.whole:
            average = ema(kept, own.assemble(mean), decay)
            local = own.of_whole(average)
        else:
            raise ValueError(f"{self.where} has means of shape {own.whole}, and the state some of shape {kept.shape}")
        return average, jnp.expand_dims(local, axes)


def root_mean_square(x: Array) -> Array:
    """Of the whole leaf of which `x` may be one device's block; a scalar."""
    return jnp.sqrt(mesh.total(jnp.real(x * jnp.conj(x))) / max(mesh.global_size(x), 1))


def inverse_root(x: Array) -> Array:
    """1 / sqrt(x), and 0 for 0."""
    return jax.lax.rsqrt(jnp.where(x == 0, jnp.inf, x))
