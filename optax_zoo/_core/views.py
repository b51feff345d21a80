"""How a leaf is read as matrices: which axes are reduced over, which are outputs, which merely repeat.

One language for every matrix method: a `MatrixView` for all leaves, a tree of them, or a function of a leaf's
path. A leaf that is one device's block inside shard_map is assembled first and cut again afterwards.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jax.tree_util import keystr

from optax_zoo._core.blocks import cuts
from optax_zoo._core.trees import PyTree, is_function

Axes: TypeAlias = int | Sequence[int]
KeyPath: TypeAlias = tuple[Any, ...]
Choice: TypeAlias = Any
"""A constant, a (prefix) tree, `f(path, leaf)` with a path such as "block/kernel", or `f(tree)` -> tree."""


class MatrixView(NamedTuple):
    """A leaf read as matrices of shape (fan_in, fan_out); several axes of one kind are flattened together.

    `split=(d, d, d)` cuts a fused projection (query, key and value in one kernel, say) into blocks that are
    separate matrices, each scaled by its own shape.
    """

    reduction: Axes = 0  # input axes
    output: Axes = 1  # output axes
    batch: Axes = ()  # layers, heads, experts
    split: Sequence[int] = ()  # sizes of blocks along the flattened output axes


DimensionNumbers: TypeAlias = Any
"""None or a `Choice` of `MatrixView`s; objects with `reduction_axis` and `output_axis`, such as
`optax.contrib.MuonDimensionNumbers`, count as views whose other axes are batch axes. None for a leaf: the
default, all axes but the last are reduced over (kernels in Flax's layout, (in, out) or (height, width, in,
out))."""


def is_view(x: object) -> bool:
    """Whether `x` says how a leaf is read as matrices."""
    return isinstance(x, MatrixView) or (hasattr(x, "reduction_axis") and hasattr(x, "output_axis"))


def path_name(path: KeyPath) -> str:
    """The leaf at ["block"]["kernel"] is called "block/kernel"."""
    return keystr(path, simple=True, separator="/")


def choose(
    speaker: str, what: str, value: Choice, tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> list[Any]:
    """The value that `value` gives to each leaf of `tree` (`None` and `MaskedNode` hold no leaf).

    Raises:
      ValueError: a tree without an entry for some leaf of `tree`.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    if is_function(value):
        if _required_arguments(value) == 2:
            return [value(path_name(path), leaf) for path, leaf in flat]
        value = value(tree)

    def stop(node: Any) -> bool:
        return node is None or (is_leaf is not None and is_leaf(node))

    entries = dict(jax.tree_util.tree_flatten_with_path(value, is_leaf=stop)[0])

    def entry(path: KeyPath) -> Any:
        for length in range(len(path), -1, -1):
            if path[:length] in entries:
                return entries[path[:length]]
        raise ValueError(f"{speaker}: {what} has no entry for the leaf at {keystr(path)}")

    return [entry(path) for path, _ in flat]


def _required_arguments(function: Callable[..., Any]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of one leaf, non-negative and sorted by kind."""

    reduction: tuple[int, ...]
    output: tuple[int, ...]
    batch: tuple[int, ...]
    split: tuple[int, ...]
    where: str

    @property
    def order(self) -> tuple[int, ...]:
        """The axes as a matrix wants them."""
        return self.batch + self.reduction + self.output

    def blocks(self, x: Array) -> list[Array]:
        """The leaf as arrays of shape (fan_in, fan_out), or (batch, fan_in, fan_out), one for each split."""
        repeats, fan_in, fan_out = (
            math.prod(x.shape[axis] for axis in axes) for axes in (self.batch, self.reduction, self.output)
        )
        whole = x.transpose(self.order).reshape(*([repeats] if self.batch else []), fan_in, fan_out)
        if not self.split:
            return [whole]
        if sum(self.split) != fan_out or min(self.split) < 1:
            raise ValueError(f"{self.where} has {fan_out} outputs, which its split {self.split} must add up to")
        return jnp.split(whole, list(itertools.accumulate(self.split))[:-1], axis=-1)

    def merge(self, blocks: Sequence[Array], shape: tuple[int, ...]) -> Array:
        """The leaf of the given shape from its blocks."""
        whole = jnp.concatenate(blocks, axis=-1) if len(blocks) > 1 else blocks[0]
        inverse = sorted(range(len(shape)), key=self.order.__getitem__)
        return whole.reshape([shape[axis] for axis in self.order]).transpose(inverse)


def layout(view: Any, shape: tuple[int, ...], where: str) -> Layout:
    """The axes that `view` (None: the default) names on a leaf of this shape.

    Args:
      view: None, a `MatrixView` or an object with `reduction_axis` and `output_axis`.
      shape: of the leaf.
      where: the beginning of an error, such as "muon: the leaf at ['w']".

    Raises:
      ValueError: fewer than two axes, or axes out of range, repeated or not all named.
    """
    ndim = len(shape)
    where = f"{where} of shape {shape}"
    if ndim < 2:
        raise ValueError(f"{where} is not a matrix; mask it, or let another method update it")
    if view is None:
        view = MatrixView(range(ndim - 1), ndim - 1)
    elif not isinstance(view, MatrixView):
        reduction, output = _axes(view.reduction_axis), _axes(view.output_axis)
        named = {axis % ndim for axis in reduction + output}
        view = MatrixView(reduction, output, [axis for axis in range(ndim) if axis not in named])
    kinds = tuple(map(_axes, (view.reduction, view.output, view.batch)))
    named = f"reduction {kinds[0]}, output {kinds[1]} and batch {kinds[2]}"
    if any(not -ndim <= axis < ndim for axes in kinds for axis in axes):
        raise ValueError(f"{where} has axes -{ndim} to {ndim - 1}, its view names {named}")
    reduction, output, batch = (tuple(axis % ndim for axis in axes) for axes in kinds)
    if sorted(reduction + output + batch) != list(range(ndim)) or not (reduction and output):
        raise ValueError(f"{where} needs a view that names every axis once, got {named}")
    return Layout(reduction, output, batch, tuple(view.split), where)


def layouts(speaker: str, dimension_numbers: DimensionNumbers, tree: PyTree) -> list[Layout]:
    """The axes of every leaf of `tree`.

    Raises:
      ValueError: a leaf that is no matrix, or whose view does not fit; the sentence names its path.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    views = choose(speaker, "dimension_numbers", dimension_numbers, tree, is_view)
    return [
        layout(view, x.shape, f"{speaker}: the leaf at {keystr(path) or 'the root'}")
        for (path, x), view in zip(flat, views, strict=True)
    ]


def _axes(axes: Axes) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


@dataclasses.dataclass(frozen=True)
class Matrices:
    """One leaf taken apart into whole matrices, and the way back."""

    blocks: list[Array]
    axes: Layout
    gathered: tuple[tuple[str, ...], ...]  # of each axis, the mesh axes over which it was assembled
    whole: tuple[int, ...]
    local: tuple[int, ...]

    @classmethod
    def of(cls, x: Array, axes: Layout, spec: PartitionSpec | None) -> "Matrices":
        """Reads `x`; inside shard_map assembles the axes that `spec` says are cut.

        Raises:
          ValueError: `x` differs between devices and there is no spec.
        """
        named = cuts(x, spec, axes.where, "a matrix must be whole")
        gathered = tuple(() if axis in axes.batch else names for axis, names in enumerate(named))
        whole = x
        for axis, names in enumerate(gathered):
            if names:
                whole = jax.lax.all_gather(whole, names, axis=axis, tiled=True)
        return cls(axes.blocks(whole), axes, gathered, whole.shape, x.shape)

    def restore(self, blocks: Sequence[Array]) -> Array:
        """The leaf, or this device's block of it, from matrices like `blocks`."""
        x = self.axes.merge(blocks, self.whole)
        for axis, names in enumerate(self.gathered):
            if names:
                size = self.local[axis]
                x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(names) * size, size, axis)
        return x
