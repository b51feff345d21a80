"""What a slot of optimizer state is: how it starts, and in which dtype it is stored."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import DTypeLike

from optax_zoo._core import mesh
from optax_zoo._core.naming import speaker
from optax_zoo._core.trees import PyTree

PerParameter: TypeAlias = Any
"""A state field with one array per parameter: a params-shaped tree, and inside a rule one leaf's array."""

PerLeaf: TypeAlias = Any
"""A state field with a statistic of each leaf in another shape than the leaf's, or None; in a rule one leaf's."""

Store: TypeAlias = DTypeLike | None
"""A dtype to keep a slot in; None: the slot's own rule."""


def widest(*dtypes: DTypeLike) -> jnp.dtype:
    """The smallest dtype that holds all of them, whatever promotion mode the user has set."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    return widest(dtype, jnp.float32)


def lifted(tree: PyTree) -> PyTree:
    """Floating and complex leaves in float32 or better, so that what two transformations do is rounded once."""

    def lift(x: Any) -> Any:
        return jnp.asarray(x, at_least_float32(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(lift, tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves in the dtypes of those of `like`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def real_at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """float32 or better: the square of a gradient leaves float16's range, its slow average bfloat16's precision."""
    return at_least_float32(jnp.finfo(dtype).dtype)


def _same(dtype: DTypeLike) -> jnp.dtype:
    return jnp.dtype(dtype)


@dataclasses.dataclass(frozen=True)
class Slot:
    """One params-shaped tree of the state.

    Attributes:
      first: the first content from (parameter leaf, storage dtype).
      dtype: the storage dtype from the leaf's dtype.
    """

    first: Callable[[Array, jnp.dtype], Array]
    dtype: Callable[[Any], jnp.dtype]

    def init(self, leaf: Array) -> Array:
        """A fresh buffer for one leaf, laid out over devices like the leaf."""
        own = jnp.result_type(leaf)
        dtype = self.dtype(own) if jnp.issubdtype(own, jnp.inexact) else own
        slot = self.first(leaf, dtype)
        placed_by_compiler = isinstance(leaf, Tracer) and not mesh.is_manual()
        return _laid_out_like(leaf, slot) if placed_by_compiler else slot


def _laid_out_like(leaf: Array, slot: Array) -> Array:
    """`slot`, in a form that seems to depend on `leaf`: the compiler shards it alike, then drops the selection."""
    source = leaf if jnp.iscomplexobj(slot) else jnp.real(leaf)
    return jnp.where(jnp.zeros_like(leaf, bool), source.astype(slot.dtype), slot)


def zeros(store: Store = None) -> Slot:
    """Starts at 0 in the leaf's dtype, or in `store`."""
    return full(0.0, store)


def full(value: float, store: Store = None) -> Slot:
    """Starts at `value` in the leaf's dtype, or in `store`."""
    return Slot(lambda leaf, dtype: jnp.full_like(leaf, value, dtype), _stored(store, _same))


def squares(store: Store = None) -> Slot:
    """Starts at 0 in a real dtype, float32 or better, or in `store`."""
    return Slot(lambda leaf, dtype: jnp.zeros_like(leaf, dtype), _stored(store, real_at_least_float32))


def copy(store: Store = None) -> Slot:
    """Starts as a copy (never an alias) of the parameter, in float32 or better, or in `store`."""
    return Slot(_copied, _stored(store, at_least_float32))


def wide_zeros(store: Store = None) -> Slot:
    """Starts at 0 in float32 or better, for averages too slow for less, or in `store`."""
    return Slot(lambda leaf, dtype: jnp.zeros_like(leaf, dtype), _stored(store, at_least_float32))


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What the state keeps of each leaf in a shape of its own; `optax.tree_map_params` passes it by.

    Attributes:
      first: the first content from the parameter leaf and, by keyword, its `static` values: an array, or several by
        name; None: nothing.
    """

    first: Callable[..., Any]


def _copied(leaf: Array, dtype: jnp.dtype) -> Array:
    return jnp.array(leaf, dtype=dtype, copy=True)


def floating(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of that name.

    Raises:
      TypeError: it is unknown, or neither floating nor complex.
    """
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.inexact):
        shown = dtype if known is None else str(known)
        raise TypeError(f"{speaker()}: {shown!r} is not a floating dtype such as 'bfloat16'")
    return known


def _stored(store: Store, default: Callable[[Any], jnp.dtype]) -> Callable[[Any], jnp.dtype]:
    if store is None:
        return default
    stored = floating(store)
    return lambda dtype: widest(stored, jnp.complex64) if jnp.issubdtype(dtype, jnp.complexfloating) else stored
