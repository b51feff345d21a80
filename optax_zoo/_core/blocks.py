"""A leaf that is one device's block inside shard_map: where it lies in the whole, and what the whole is."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from optax_zoo._core import mesh


def is_spec(x: object) -> bool:
    """Whether `x` says how an array is sharded."""
    return isinstance(x, PartitionSpec)


UPDATE = "update(grads, state, params, param_specs=...)"
"""How an update is told of PartitionSpecs."""


def cuts(x: Array, spec: PartitionSpec | None, where: str, why: str, call: str = UPDATE) -> tuple[tuple[str, ...], ...]:
    """Of each axis of `x`, the mesh axes of an enclosing shard_map that cut it.

    Args:
      x: a leaf, or one device's block of it.
      spec: how the leaf is sharded; None: unknown.
      where: the beginning of an error, such as "muon: the leaf at ['w']".
      why: what the method needs, such as "a matrix must be whole".
      call: how to hand over the spec.

    Raises:
      ValueError: `x` differs between devices and there is no spec.
    """
    if spec is None:
        if varying := mesh.varying_axes(x):
            raise ValueError(
                f"{where} is one device's block along mesh axis {varying[0]!r}, and {why}; pass the parameters'"
                f" PartitionSpecs, {call}"
            )
        return ((),) * x.ndim
    manual = jax.sharding.get_abstract_mesh().manual_axes
    named = [() if cut is None else (cut,) if isinstance(cut, str) else tuple(cut) for cut in spec]
    named += [()] * (x.ndim - len(named))
    return tuple(tuple(name for name in cut if name in manual) for cut in named)


def refuse_block(kept: Array, where: str, why: str) -> None:
    """Raises a ValueError if what the state keeps about a leaf differs between devices; `where`, `why` as in `cuts`."""
    if varying := mesh.varying_axes(kept):
        raise ValueError(
            f"{where} has state of shape {kept.shape} cut along mesh axis {varying[0]!r}, and {why}; keep it whole on"
            " every device"
        )


@dataclasses.dataclass(frozen=True)
class Block:
    """Where a leaf, or one device's block of it, lies in the whole.

    Attributes:
      shape: of the block.
      cut: of each axis, the mesh axes that cut it.
    """

    shape: tuple[int, ...]
    cut: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, x: Array, spec: PartitionSpec | None, where: str, why: str, call: str = UPDATE) -> "Block":
        """Reads where `x` lies; arguments and error as in `cuts`."""
        return cls(x.shape, cuts(x, spec, where, why, call))

    @classmethod
    def beside(cls, kept: Array, x: Array, spec: PartitionSpec | None, where: str, why: str) -> "Block":
        """As `of`, for a leaf about which the state keeps `kept`: a leaf that is cut like it counts as whole.

        Raises:
          ValueError: as `of` and `refuse_block`.
        """
        if kept.shape == x.shape and mesh.varying_axes(kept) == mesh.varying_axes(x):
            return cls(x.shape, ((),) * x.ndim)
        refuse_block(kept, where, why)
        return cls.of(x, spec, where, why)

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        sizes = (math.prod(map(jax.lax.axis_size, names)) for names in self.cut)
        return tuple(n * size for n, size in zip(self.shape, sizes, strict=True))

    @property
    def _axes(self) -> tuple[str, ...]:
        return self._along(range(len(self.cut)))

    def _along(self, axes: Iterable[int]) -> tuple[str, ...]:
        return tuple(name for axis in axes for name in self.cut[axis])

    def _offsets(self) -> list[Array]:
        return [
            jax.lax.axis_index(names) * n if names else jnp.zeros((), jnp.int32)
            for n, names in zip(self.shape, self.cut, strict=True)
        ]

    def assemble(self, x: Array) -> Array:
        """The whole leaf, the same on every device, from its blocks."""
        return self.linear(lambda whole: whole, x)

    def linear(self, function: Callable[[Array], Array], x: Array) -> Array:
        """`function(whole leaf)`, the same on every device, for a linear function; its result is what travels."""
        if not self._axes:
            return function(x)
        alone = jax.lax.dynamic_update_slice(jnp.zeros(self.whole, x.dtype), x, self._offsets())
        return jax.lax.psum(function(alone), self._axes)

    def of_whole(self, whole: Array) -> Array:
        """This device's block of the whole leaf."""
        return jax.lax.dynamic_slice(whole, self._offsets(), self.shape) if self._axes else whole

    def sum(self, x: Array, axes: Iterable[int]) -> Array:
        """Sums over these axes of the whole leaf, which stay with size 1."""
        axes = tuple(axes)
        summed = jnp.sum(x, axis=axes, keepdims=True)
        names = self._along(axes)
        return jax.lax.psum(summed, names) if names else summed

    def largest(self, x: Array, axes: Iterable[int]) -> Array:
        """The largest entry, at least 0, over these axes of the whole leaf, which stay with size 1."""
        axes = tuple(axes)
        most = jnp.max(x, axis=axes, keepdims=True, initial=0.0)
        names = self._along(axes)
        return jax.lax.pmax(most, names) if names else most
