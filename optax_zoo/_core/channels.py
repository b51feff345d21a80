"""Which axis of a leaf indexes its output channels: one way to say it for every rule that looks at channels."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.tree_util import keystr

from optax_zoo._core.hyper import structural
from optax_zoo._core.naming import speaker
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import choose

ChannelAxis: TypeAlias = Any
"""An int or None for all leaves, a (prefix) tree of them, or `f(path, leaf)` with a path such as "block/kernel". Flax,
Haiku and Equinox-style kernels, (in, out) or (height, width, in, out), have their channels last: -1; PyTorch's first:
0. None: the leaf has no channel axis."""

LAST = structural(-1)


@dataclasses.dataclass(frozen=True)
class Channel:
    """The channel axis of one leaf, non-negative, or None."""

    axis: int | None

    def others(self, ndim: int) -> tuple[int, ...]:
        """The axes that lie within a channel; all of them where there is no channel axis."""
        return tuple(axis for axis in range(ndim) if axis != self.axis)


def channels(channel_axis: ChannelAxis) -> Callable[[PyTree], PyTree]:
    """`channel_axis` as a function of a tree that returns a tree of `Channel`; 0-d and 1-d leaves have none.

    For `leafwise(static={"channel": channels(channel_axis)})`.

    Raises (when called):
      TypeError: an axis that is no integer.
      ValueError: an axis that its leaf does not have; the sentence names the path.
    """
    name = speaker()

    def channel(path: Any, leaf: Any, axis: Any) -> Channel:
        where = f"of the leaf at {keystr(path) or 'the root'} of shape {leaf.shape}"
        number = None if axis is None else _integer(axis, f"{name}: channel_axis {where}")
        if number is None or leaf.ndim < 2:
            return Channel(None)
        if not -leaf.ndim <= number < leaf.ndim:
            raise ValueError(f"{name}: channel_axis {where} must be in [{-leaf.ndim}, {leaf.ndim - 1}], got {number}")
        return Channel(number % leaf.ndim)

    def of(tree: PyTree) -> PyTree:
        flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
        axes = choose(name, "channel_axis", channel_axis, tree)
        return jax.tree.unflatten(treedef, [channel(*pair, axis) for pair, axis in zip(flat, axes, strict=True)])

    return of


def _integer(axis: Any, what: str) -> int:
    if isinstance(axis, jax.Array):
        raise TypeError(f"{what} must be no array; name it in the static_args of optax.inject_hyperparams")
    if isinstance(axis, int | np.integer) and not isinstance(axis, bool):
        return operator.index(axis)
    raise TypeError(f"{what} must be an integer or None, got {axis!r}")
