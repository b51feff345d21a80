"""A ring of parameter snapshots: each in a tree of its own, on the device or in the host's memory.

Snapshots are rare, so what touches the ring is to stand in one branch of a `lax.cond`: the other branch hands the
buffers on without reading them.
"""

import dataclasses
import functools
import operator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.naming import speaker
from optax_zoo._core.slots import Slot, at_least_float32, copy
from optax_zoo._core.trees import Leaves, PyTree

Snapshots: TypeAlias = tuple[PyTree, ...]
"""A state field with several params-shaped trees."""


@dataclasses.dataclass(frozen=True)
class Ring:
    """How the snapshots of one method are kept.

    Attributes:
      slot: of one snapshot.
      host: whether they are kept in the host's memory.
      name: the method's, for errors.
    """

    slot: Slot
    host: bool = False
    name: str = dataclasses.field(default_factory=speaker)

    def init(self, params: PyTree, k: Any) -> Snapshots:
        """`k` snapshots of `params`.

        Raises:
          ValueError: arrays cannot be kept in the memory of the host.
        """
        ring = tuple(jax.tree.map(self.slot.init, params) for _ in range(int(k)))
        if not self.host:
            return ring
        with jax.ensure_compile_time_eval():
            kind = _to_host(jnp.zeros(())).sharding.memory_kind
        if kind != "pinned_host":
            raise ValueError(
                f"{self.name}: host=True needs a backend with memory of the kind 'pinned_host';"
                f" {jax.default_backend()} on jax {jax.__version__} keeps arrays in {kind!r}"
            )
        return _to_host(ring)

    def settle(self, ring: Snapshots, params: PyTree) -> Snapshots:
        """The ring in its place, should a checkpoint have been restored elsewhere.

        Raises:
          ValueError: it does not fit `params`; the sentence names the path.
        """
        leaves = Leaves(self.name, "params", params)
        for tree in ring:
            leaves.same_shapes("the state's ring", leaves.match("the state's ring", tree))
        return _to_host(ring) if self.host else ring

    def push(self, ring: Snapshots, position: Array, params: PyTree) -> Snapshots:
        """The ring with a snapshot of `params` at `position`; nothing else is written or transferred."""

        def write(tree: PyTree, params: PyTree) -> PyTree:
            snapshot = stored(params, tree)
            return _to_host(snapshot) if self.host else snapshot

        return tuple(
            jax.lax.cond(position == i, write, lambda tree, _: tree, tree, params) for i, tree in enumerate(ring)
        )


def snapshot(dtype: DTypeLike | None) -> Slot:
    """A copy of the parameter in its own dtype, or in `dtype`."""
    return copy(dtype) if dtype is not None else dataclasses.replace(copy(), dtype=jnp.dtype)


def stored(params: PyTree, like: PyTree) -> PyTree:
    """`params` in the dtypes of `like`."""
    return jax.tree.map(lambda p, old: p.astype(old.dtype), params, like)


def mean_of(ring: Snapshots, newest: Array, count: Array) -> PyTree:
    """The mean of the `count` snapshots up to position `newest`, in float32 or better; integers are the newest's."""
    k = len(ring)
    ages = [(newest - i) % k for i in range(k)]

    def leaf(*xs: Array) -> Array:
        if not jnp.issubdtype(xs[0].dtype, jnp.inexact):
            return functools.reduce(lambda found, i: jnp.where(ages[i] == 0, xs[i], found), range(1, k), xs[0])
        wide = at_least_float32(xs[0].dtype)
        taken = [jnp.where(age < count, x.astype(wide), jnp.zeros((), wide)) for age, x in zip(ages, xs, strict=True)]
        return functools.reduce(operator.add, taken) / count.astype(wide)

    return jax.tree.map(leaf, *on_device(ring))


def on_device(trees: Any) -> Any:
    """The trees in the device's memory."""
    return jax.tree.map(lambda x: _placed(x, jax.memory.Space.Device), trees)


def _to_host(trees: Any) -> Any:
    return jax.tree.map(lambda x: _placed(x, jax.memory.Space.Host), trees)


def _placed(x: Array, space: Any) -> Array:
    """What is there already stays the same array."""
    return x if jax.typeof(x).memory_space == space else jax.device_put(x, space)
