"""The axes that a view names on one leaf, and the leaf taken apart into matrices and put together again.

A leaf that is one device's block inside shard_map is assembled first and cut again afterwards.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from optax_zoo._core import mesh
from optax_zoo._core.blocks import cuts
from optax_zoo._core.notes import note
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import (
    DimensionNumbers,
    MatrixView,
    as_axes,
    as_matrix_view,
    is_fallback,
    is_view,
    map_views,
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of one leaf, non-negative and sorted by kind, and the blocks of its outputs.

    Attributes:
      split: sizes of the blocks along the flattened output axes; () for a single block.
      heads: equal parts of each block.
      where: the beginning of an error about the leaf.
    """

    reduction: tuple[int, ...]
    output: tuple[int, ...]
    batch: tuple[int, ...]
    split: tuple[int, ...]
    heads: int
    where: str = dataclasses.field(compare=False)  # equal leaves are traced once

    @property
    def order(self) -> tuple[int, ...]:
        """The axes as a matrix wants them."""
        return self.batch + self.reduction + self.output

    def _flat(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Repeats, inputs and outputs of a leaf of this shape."""
        repeats, inputs, outputs = (
            math.prod(shape[axis] for axis in axes) for axes in (self.batch, self.reduction, self.output)
        )
        return repeats, inputs, outputs

    def fans(self, shape: Sequence[int]) -> list[tuple[int, int, int]]:
        """(number, fan_in, fan_out) of the matrices of each block of a leaf of this shape."""
        repeats, fan_in, fan_out = self._flat(shape)
        return [(repeats * self.heads, fan_in, size // self.heads) for size in self.split or (fan_out,)]

    def blocks(self, x: Array) -> list[Array]:
        """The leaf as arrays of shape (fan_in, fan_out), or (number, fan_in, fan_out), one for each block."""
        repeats, fan_in, fan_out = self._flat(x.shape)
        whole = x.transpose(self.order).reshape(*([repeats] if self.batch else []), fan_in, fan_out)
        parts = jnp.split(whole, list(itertools.accumulate(self.split))[:-1], axis=-1) if self.split else [whole]
        return [self._apart(part) for part in parts]

    def _apart(self, block: Array) -> Array:
        """A block's heads beside each other on the first axis."""
        if self.heads == 1:
            return block
        *_, fan_in, fan_out = block.shape
        cut = block.reshape(-1, fan_in, self.heads, fan_out // self.heads)
        return cut.transpose(0, 2, 1, 3).reshape(-1, fan_in, fan_out // self.heads)

    def _together(self, heads: Array) -> Array:
        """The block that `_apart` takes apart."""
        if self.heads == 1:
            return heads
        _, fan_in, width = heads.shape
        block = heads.reshape(-1, self.heads, fan_in, width).transpose(0, 2, 1, 3)
        return block.reshape(-1, fan_in, self.heads * width)

    def merge(self, blocks: Sequence[Array], shape: tuple[int, ...]) -> Array:
        """The leaf of the given shape from its blocks."""
        whole = jnp.concatenate(list(map(self._together, blocks)), axis=-1)
        inverse = sorted(range(len(shape)), key=self.order.__getitem__)
        return whole.reshape([shape[axis] for axis in self.order]).transpose(inverse)

    def per_output(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an array with one number for each output of a leaf, in the leaf's layout."""
        return tuple(1 if axis in self.reduction else n for axis, n in enumerate(shape))

    def per_matrix(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an array with one number for each matrix of a leaf: `of_matrices` reads it."""
        inner = (*self.reduction, *self.output[:-1])
        count = self.heads * max(1, len(self.split))
        return tuple(1 if axis in inner else count if axis == self.output[-1] else n for axis, n in enumerate(shape))

    @property
    def of_matrices(self) -> "Layout":
        """The layout of an array of shape `per_matrix`: its blocks are the numbers, of fan_in and fan_out 1."""
        return dataclasses.replace(self, split=(self.heads,) * max(1, len(self.split)))


def layout(view: Any, shape: tuple[int, ...], where: str) -> Layout:
    """The axes that `view` (None: `KERNEL`) names on a leaf of this shape.

    Args:
      view: None, a `MatrixView` or an object with `reduction_axis` and `output_axis`.
      shape: of the leaf.
      where: the beginning of an error, such as "muon: the leaf at ['w']".

    Raises:
      TypeError: `view` is none.
      ValueError: fewer than two axes, axes out of range, repeated or not all named, or blocks that do not divide the
        outputs.
    """
    ndim = len(shape)
    where = f"{where} of shape {shape}"
    if is_fallback(view):
        raise ValueError(f"{where} is left to the fallback optimizer, which is not here; mask it")
    if ndim < 2:
        raise ValueError(f"{where} is not a matrix; mask it, or let another method update it")
    if not (view is None or is_view(view)):
        raise TypeError(f"{where} must have a MatrixView or None, got {view!r}")
    view = as_matrix_view(view, ndim)
    inputs = view.reduction
    if inputs is None:
        named = {axis % ndim for axis in as_axes(view.output) + as_axes(view.batch)}
        inputs = [axis for axis in range(ndim) if axis not in named]
    kinds = tuple(map(as_axes, (inputs, view.output, view.batch)))
    named = f"reduction {kinds[0]}, output {kinds[1]} and batch {kinds[2]}"
    if any(not -ndim <= axis < ndim for axes in kinds for axis in axes):
        raise ValueError(f"{where} has axes -{ndim} to {ndim - 1}, its view names {named}")
    reduction, output, batch = (tuple(axis % ndim for axis in axes) for axes in kinds)
    if sorted(reduction + output + batch) != list(range(ndim)) or not (reduction and output):
        raise ValueError(f"{where} needs a view that names every axis once, got {named}")
    fan_out = math.prod(shape[axis] for axis in output)
    return Layout(reduction, output, batch, _split(view, fan_out, where), view.heads, where)


def _split(view: MatrixView, fan_out: int, where: str) -> tuple[int, ...]:
    """The sizes of the blocks that a view cuts so many outputs into; () for one."""
    if isinstance(view.split, Sequence):
        sizes = tuple(map(operator.index, view.split))
    else:
        number = operator.index(view.split)
        if number < 1 or fan_out % number:
            raise ValueError(f"{where} has {fan_out} outputs, which its split into {number} does not divide")
        sizes = (fan_out // number,) * number if number > 1 else ()
    if sizes and (sum(sizes) != fan_out or min(sizes) < 1):
        raise ValueError(f"{where} has {fan_out} outputs, which its split {sizes} must add up to")
    for size in sizes or (fan_out,):
        if view.heads < 1 or size % view.heads:
            raise ValueError(f"{where} has a block of {size} outputs, which its {view.heads} heads do not divide")
    return sizes


def layouts_of(speaker: str, dimension_numbers: DimensionNumbers) -> Callable[[PyTree], PyTree]:
    """A tree of `Layout`s from a tree, for `leafwise(static={"axes": layouts_of(...)})`; `describe` is told.

    Raises (when called):
      ValueError: a leaf that is no matrix, or whose view does not fit; the sentence names its path.
    """

    def read(where: str, path: str, leaf: Array, view: Any) -> Layout:
        found = layout(view, leaf.shape, where)
        note(speaker, path, leaf.shape, _in_words(found.fans(leaf.shape)))
        return found

    return lambda tree: map_views(speaker, dimension_numbers, tree, read)


def _in_words(fans: Sequence[tuple[int, int, int]]) -> str:
    """ "3 matrices of 64 x 64"."""
    kinds: dict[tuple[int, int], int] = {}
    for number, fan_in, fan_out in fans:
        kinds[fan_in, fan_out] = kinds.get((fan_in, fan_out), 0) + number
    words = [f"{number} matri{'x' if number == 1 else 'ces'} of {m} x {n}" for (m, n), number in kinds.items()]
    return " and ".join(words)


def uncut(spec: PartitionSpec | None, axes: Iterable[int]) -> PartitionSpec | None:
    """The spec of an array like a leaf whose entries along these axes are taken together."""
    whole = tuple(axes)
    return None if spec is None else PartitionSpec(*(None if i in whole else cut for i, cut in enumerate(spec)))


Cuts: TypeAlias = tuple[tuple[str, ...], ...]
"""Of each axis of an array, the mesh axes that cut it."""


def block_cuts(axes: Layout, named: Cuts) -> Cuts | None:
    """How a leaf's cuts cut its blocks of shape (number, fan_in, fan_out); None where no block stays a matrix's block.

    Args:
      axes: of the leaf.
      named: of each axis of the leaf, the mesh axes that cut it.
    """
    kinds = (axes.batch, axes.reduction, axes.output)
    if any(named[axis] for kind in kinds for axis in kind[1:]):
        return None
    found = tuple(named[kind[0]] if kind else () for kind in kinds)
    return None if found[2] and (axes.split or axes.heads > 1) else found


@dataclasses.dataclass(frozen=True)
class Matrices:
    """One leaf taken apart into matrices, and the way back.

    Attributes:
      blocks: arrays of shape (fan_in, fan_out) or (number, fan_in, fan_out).
      cuts: of each axis of a block (number, fan_in, fan_out), the mesh axes that still cut it.
      fans: (number, fan_in, fan_out) of the whole matrices of each block.
    """

    blocks: list[Array]
    cuts: Cuts
    fans: list[tuple[int, int, int]]
    axes: Layout
    gathered: Cuts  # of each axis of the leaf, the mesh axes over which it was assembled
    whole: tuple[int, ...]
    local: tuple[int, ...]

    @classmethod
    def of(cls, x: Array, axes: Layout, spec: PartitionSpec | None, *, assemble: bool = True) -> "Matrices":
        """Reads `x`, a leaf or an array like it with axes of size 1; inside shard_map assembles what `spec` cuts.

        Args:
          x: a leaf, or one device's block of it.
          axes: of the leaf.
          spec: how the leaf is sharded; None: unknown.
          assemble: whether to assemble blocks that could stay cut.

        Raises:
          ValueError: `x` differs between devices and there is no spec.
        """
        named = cuts(x, spec, axes.where, "a matrix must be whole")
        kept = None if assemble else block_cuts(axes, named)
        leaf = tuple(n * math.prod(map(jax.lax.axis_size, names)) for n, names in zip(x.shape, named, strict=True))
        gathered = tuple(() if kept or axis in axes.batch else names for axis, names in enumerate(named))
        whole = x
        for axis, names in enumerate(gathered):
            if names:
                whole = mesh.gathered(whole, names, axis)
        still = kept or (tuple(name for axis in axes.batch for name in named[axis]), (), ())
        return cls(axes.blocks(whole), still, axes.fans(leaf), axes, gathered, whole.shape, x.shape)

    def sum(self, x: Array, *axes: int) -> Array:
        """Sums an array like a block over axes of the whole matrices, -2 of inputs and -1 of outputs; they stay with
        size 1."""
        summed = jnp.sum(x, axis=axes, keepdims=True)
        names = tuple(name for axis in axes for name in self.cuts[axis])
        return jax.lax.psum(summed, names) if names else summed

    def restore(self, blocks: Sequence[Array]) -> Array:
        """The leaf, or this device's block of it, from matrices like `blocks`."""
        x = self.axes.merge(blocks, self.whole)
        for axis, names in enumerate(self.gathered):
            if names:
                size = self.local[axis]
                x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(names) * size, size, axis)
        return x
