"""Which axes of a leaf have Kronecker factors, and the leaf taken apart so that these are axes of arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block
from optax_zoo._core.layouts import Layout, Matrices, layout
from optax_zoo._core.notes import note
from optax_zoo._core.slots import real_at_least_float32
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import FALLBACK, DimensionNumbers, is_fallback, is_view, map_views

Factors: TypeAlias = Mapping[int, Array]
"""Of one part of a leaf, a square matrix for each axis that has one."""

Kept: TypeAlias = tuple[Array, ...]
"""The factors of all parts of a leaf, one after the other."""

WHOLE = "whole"
"""A leaf each of whose axes has a factor."""


class Parts(NamedTuple):
    """A leaf as arrays whose axes have factors, and the way back."""

    arrays: Sequence[Array]
    whole: Callable[[Sequence[Array]], Array]


class Reader(NamedTuple):
    """How leaves are read.

    Attributes:
      name: the method.
      largest: longer axes have no factor.
      merges: whether neighbouring axes become one as long as it is no longer than that.
      rotates_vectors: whether vectors have one too.
    """

    name: str
    largest: int
    merges: bool
    rotates_vectors: bool

    def views(self, dimension_numbers: DimensionNumbers) -> Callable[[PyTree], PyTree]:
        """Of each leaf a layout, "fallback" for no rotation, or "whole": as it is."""

        return lambda tree: map_views(self.name, dimension_numbers, tree, self._view)

    def _view(self, where: str, path: str, leaf: Any, view: Any) -> Layout | str:
        known = is_view(view) and len(leaf.shape) >= 2
        read = layout(view, leaf.shape, where) if known else FALLBACK if is_fallback(view) else WHOLE
        sizes = sorted({n for x in self._shapes(leaf.shape, read) for _, n in self.rotated(x, read, len(leaf.shape))})
        note(self.name, path, leaf.shape, f"rotated, axes of {sizes}" if sizes else "not rotated")
        return read

    def _shapes(self, shape: Sequence[int], view: Layout | str) -> list[tuple[int, ...]]:
        """Of the parts of a leaf, a number of equal matrices in front."""
        if isinstance(view, Layout):
            return [fans if view.batch or view.heads > 1 else fans[1:] for fans in view.fans(shape)]
        return [merged(shape, self.largest) if self.merges else tuple(shape)]

    def rotated(self, shape: Sequence[int], view: Layout | str, ndim: int) -> list[tuple[int, int]]:
        """(axis, size) of the axes of a part that have factors, in a leaf of so many axes; those of a matrix behind the
        number of matrices."""
        inner = shape[-2:] if isinstance(view, Layout) else shape
        if is_fallback(view) or (ndim < 2 and not self.rotates_vectors):
            return []
        return [(axis, n) for axis, n in enumerate(inner) if 1 < n <= self.largest]

    def _factor_shapes(self, shapes: Sequence[Sequence[int]], view: Layout | str, ndim: int) -> list[tuple[int, ...]]:
        return [
            (*(shape[:-2] if isinstance(view, Layout) else ()), n, n)
            for shape in shapes
            for _, n in self.rotated(shape, view, ndim)
        ]

    def no_factors(self, leaf: Array, *, view: Layout | str) -> Kept:
        """Zeros for each axis of each part that has a factor; of several matrices, for each."""
        dtype = real_at_least_float32(leaf.dtype)
        shapes = self._factor_shapes(self._shapes(leaf.shape, view), view, leaf.ndim)
        return tuple(jnp.zeros(shape, dtype) for shape in shapes)

    def check(self, kept: PyTree, parts: Parts, view: Layout | str, g: Array) -> None:
        """Raises a ValueError if the state keeps factors of other shapes, but for rows that shard_map has cut."""
        wanted = self._factor_shapes([x.shape for x in parts.arrays], view, g.ndim)
        found = [x.shape for x in jax.tree.leaves(kept)]
        if [(len(shape), shape[-1]) for shape in found] != [(len(shape), shape[-1]) for shape in wanted]:
            raise ValueError(
                f"{self.name}: a leaf of shape {g.shape} needs factors of the shapes {tuple(wanted)}, the state has"
                f" {tuple(found)}; make the state of whole leaves, with the same arguments"
            )

    def parts(self, x: Array, view: Layout | str, spec: PartitionSpec | None) -> Parts:
        """The leaf, or an array like it, in parts of whole axes."""
        if isinstance(view, Layout):
            matrices = Matrices.of(x, view, spec)
            return Parts(matrices.blocks, matrices.restore)
        block = Block.of(x, spec, f"{self.name}: a leaf of shape {x.shape}", "its axes must be whole")
        (shape,) = self._shapes(block.whole, view)
        whole = block.assemble(x).reshape(shape)
        return Parts([whole], lambda parts: block.of_whole(parts[0].reshape(block.whole)))


def merged(shape: Sequence[int], largest: int) -> tuple[int, ...]:
    """Neighbouring axes taken together as long as their product is at most `largest`, those of size 1 dropped."""
    out: list[int] = []
    run = 1
    for n in shape:
        if run * n <= largest:
            run *= n
        elif run > 1:
            out, run = [*out, run], n
        else:
            out.append(n)
    return (*out, run) if run > 1 or not out else tuple(out)


def by_part(kept: PyTree, axes: Sequence[Sequence[int]]) -> list[dict[int, Array]]:
    """The factors of each part by its axes, whole where shard_map has cut them by rows; nnx changes their container."""

    def whole(x: Array) -> Array:
        cut = x.ndim == 2 and len(x) < x.shape[-1]
        return mesh.gathered(x, mesh.varying_axes(x), 0) if cut else x

    factors = map(whole, jax.tree.leaves(kept))
    return [{axis: next(factors) for axis in part} for part in axes]


def kept_like(old: PyTree, new: Sequence[Factors]) -> PyTree:
    """The parts' factors in the form of the state, cut by rows where they were."""

    def cut(x: Array, before: Array) -> Array:
        if x.shape == before.shape:
            return x
        row = lax.axis_index(mesh.varying_axes(before)) * len(before)
        return lax.dynamic_slice_in_dim(x, row, len(before))

    kept, container = jax.tree.flatten(old)
    return container.unflatten(map(cut, (x for factors in new for x in factors.values()), kept))
