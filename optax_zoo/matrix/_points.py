"""Which leaves hold points of which manifold, and what the state of a Riemannian method keeps of each point."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.sharding import PartitionSpec

from optax_zoo._core import mesh
from optax_zoo._core.blocks import cuts, is_spec
from optax_zoo._core.naming import speaker
from optax_zoo._core.slots import Slot, Statistic, squares
from optax_zoo._core.trees import Leaves, PyTree, is_function, is_none, stands_for_params
from optax_zoo._core.views import choose
from optax_zoo.matrix.manifolds import Euclidean, Manifold

Manifolds: TypeAlias = Any
"""A `Manifold` or `RowsOn` for all leaves, a (prefix) tree of them, `f(path, leaf)` with a path such as "embed/items",
or `f(tree)` -> tree."""


@dataclasses.dataclass(frozen=True)
class RowsOn:
    """Leaves of two axes or more hold points of `manifold` on their last axis; vectors and scalars are Euclidean.

    Unlike a function, it also serves beneath `optax.inject_hyperparams`, which takes functions for schedules.

    Raises:
      TypeError: `manifold` is none.
    """

    manifold: Manifold

    def __post_init__(self) -> None:
        if not isinstance(self.manifold, Manifold):
            raise TypeError(f"RowsOn: {self.manifold!r} is no manifold such as PoincareBall()")


def manifold_of_each(manifolds: Manifolds) -> Callable[[PyTree], PyTree]:
    """`manifolds` as a function of a tree that returns a tree of `Manifold`.

    For `leafwise(static={"manifold": manifold_of_each(manifolds)})`.

    Raises:
      TypeError: an entry that is no manifold.
      ValueError (when called): a leaf that does not fit its manifold; the sentence names the path.
    """
    name = speaker()
    if isinstance(manifolds, type) or not is_function(manifolds):
        for entry in jax.tree.leaves(manifolds, is_leaf=is_none):
            _check_manifold(f"{name}: manifolds must hold", entry)

    def of(tree: PyTree) -> PyTree:
        leaves = Leaves(name, "params", tree)
        return leaves.unflatten(_manifolds(leaves, manifolds))

    return of


def _manifolds(leaves: Leaves, manifolds: Manifolds) -> list[Manifold | None]:
    """The manifold of each leaf, None for a leaf that is None."""
    entries = iter(choose(leaves.speaker, "manifolds", manifolds, leaves.tree))
    return [
        leaf if leaf is None else _fitting(f"{leaves.speaker}: the leaf at {path}", next(entries), jnp.shape(leaf))
        for path, leaf in zip(leaves.paths, leaves.values, strict=True)
    ]


def _check_manifold(what: str, entry: Any) -> None:
    if not isinstance(entry, Manifold | RowsOn):
        raise TypeError(f"{what} a manifold such as PoincareBall() or Euclidean(), got {entry!r}")


def _fitting(where: str, entry: Any, shape: tuple[int, ...]) -> Manifold:
    """The manifold that `entry` means for a leaf of this shape."""
    _check_manifold(f"{where} needs", entry)
    if isinstance(entry, RowsOn):
        entry = entry.manifold if len(shape) > 1 else Euclidean()
    if not shape and not isinstance(entry, Euclidean):
        raise ValueError(f"{where} is a scalar, and points of {entry} have an axis")
    if shape and (misfit := entry.misfit(shape[-1])):
        raise ValueError(f"{where} has a last axis of size {shape[-1]}, {misfit}")
    return entry


def per_point(manifolds: Manifolds) -> Slot | Statistic:
    """Starts at 0, in float32 or better, in the shape of `Manifold.squares`."""

    def first(leaf: Array, manifold: Manifold) -> Array:
        like = leaf
        if not isinstance(manifold, Euclidean):
            one = jnp.sum(leaf, axis=-1, keepdims=True)
            like = jnp.broadcast_to(one, (*leaf.shape[:-1], manifold.width(leaf.shape[-1])))
        return squares().init(like)

    return squares() if isinstance(manifolds, Euclidean) else Statistic(first)


def with_whole_points(
    tx: optax.GradientTransformationExtraArgs, manifolds: Manifolds, kept: str
) -> optax.GradientTransformationExtraArgs:
    """`tx`, which refuses points without a projection in `init`, and points cut by a mesh axis in `update`.

    Args:
      kept: the field of the state that is `per_point`.
    """
    name = speaker()

    def init(params: PyTree) -> Any:
        state = tx.init(params)
        if not stands_for_params(params):
            leaves = Leaves(name, "params", params)
            for path, leaf, manifold in zip(leaves.paths, leaves.values, _manifolds(leaves, manifolds), strict=True):
                if manifold is not None:
                    _check_projectable(name, path, leaf, manifold)
        return state

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is not None and mesh.is_manual():
            leaves = Leaves(name, "the gradient", updates)
            points = leaves.match("params", params)
            numbers = leaves.match(f"the state's {kept}", getattr(state, kept))
            specs = iter(choose(name, "param_specs", extra.get("param_specs"), updates, is_spec))
            for path, manifold, p, v in zip(leaves.paths, _manifolds(leaves, manifolds), points, numbers, strict=True):
                spec = None if manifold is None else next(specs)
                if manifold is not None and not isinstance(manifold, Euclidean):
                    _check_whole(f"{name}: the leaf at {path}", p, v, spec)
        return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_projectable(name: str, path: str, leaf: Any, manifold: Manifold) -> None:
    """Raises a ValueError if a point has no projection, where that is known now and on this host."""
    ambiguous = manifold.ambiguous(leaf)
    if isinstance(ambiguous, Tracer) or not getattr(ambiguous, "is_fully_addressable", True):
        return
    rows = np.argwhere(np.asarray(ambiguous))
    if len(rows):
        row = f"row {', '.join(map(str, rows[0]))} of " if rows.size else ""
        raise ValueError(
            f"{name}: {row}params at {path} has no single nearest point on {manifold}, as zero has none on a sphere"
        )


def _check_whole(where: str, p: Array, v: Array, spec: PartitionSpec | None) -> None:
    """Raises a ValueError unless p and v are cut alike, and not along their last axis as far as that is known."""
    named = () if spec is None else cuts(p, spec, where, "")[-1]
    apart = set(mesh.varying_axes(p)) ^ set(mesh.varying_axes(v))
    if named or apart or p.shape[:-1] != v.shape[:-1]:
        cut = ", ".join(map(repr, sorted({*named, *mesh.varying_axes(p)} or apart)))
        raise ValueError(
            f"{where} is cut along mesh axis {cut}, and its points must be whole on every device; cut its leading axes"
            " only, and what the state keeps of its points alike"
        )
