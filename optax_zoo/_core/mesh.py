"""Sums over a tree that are right under jit and inside shard_map.

Inside `jax.shard_map` each device holds a block of a sharded leaf. Its type says over which mesh axes the
blocks differ, so a leaf's partial sum is completed over exactly these axes. Under jit the arrays are global
and the types name no axis. `shard_map(..., check_vma=False)` and `pmap` keep no such types: there a sum covers
the local block only.
"""

import inspect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax import Array


def varying_axes(x: Array) -> tuple[str, ...]:
    """The mesh axes over which `x` differs between devices inside shard_map, sorted; () elsewhere."""
    aval = jax.typeof(x)
    manual = getattr(aval, "mat", None)
    return tuple(sorted(manual.varying if manual is not None else getattr(aval, "vma", ())))


def is_manual() -> bool:
    """Whether this code runs inside shard_map, where arrays are one device's blocks."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def global_size(x: Array) -> int:
    """Number of entries of the whole leaf of which `x` may be one device's block."""
    return x.size * math.prod(jax.lax.axis_size(axis) for axis in varying_axes(x))


def total(x: Array) -> Array:
    """The sum over all entries of the whole leaf of which `x` may be one device's block; a scalar."""
    summed = jnp.sum(x)
    axes = varying_axes(summed)
    return jax.lax.psum(summed, axes) if axes else summed


def largest(x: Array) -> Array:
    """The largest entry, at least 0, of the whole leaf of which `x` may be one device's block; a scalar."""
    most = jnp.max(x, initial=0.0)
    axes = varying_axes(most)
    return jax.lax.pmax(most, axes) if axes else most


def gathered(x: Array, axes: str | tuple[str, ...], axis: int) -> Array:
    """All devices' blocks along mesh axes, beside each other on one axis of the array; the same on all devices."""
    if "to" in inspect.signature(jax.lax.all_gather).parameters:
        return jax.lax.all_gather(x, axes, axis=axis, tiled=True, to="invarying")
    size = x.shape[axis]
    alone = jnp.zeros((*x.shape[:axis], size * jax.lax.axis_size(axes), *x.shape[axis + 1 :]), x.dtype)
    place = jax.lax.axis_index(axes) * size
    return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(alone, x, place, axis), axes)


def sum_leaves(partial: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """Adds scalars over leaves and over the mesh axes each leaf varies on, one collective per set of axes."""
    groups: dict[tuple[str, ...], dict[str, Array]] = defaultdict(dict)
    for statistics in partial:
        for name, value in statistics.items():
            group = groups[varying_axes(value)]
            group[name] = group[name] + value if name in group else value
    total: dict[str, Array] = {}
    for axes, group in groups.items():
        for name, value in (jax.lax.psum(group, axes) if axes else group).items():
            total[name] = total[name] + value if name in total else value
    return total
