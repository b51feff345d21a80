"""Matrices shared out over the devices along mesh axes: each device solves its part of every stack of equal shapes.

Under jit, where arrays are global, the compiler moves the matrices: replicated ones by one all-gather of the results
per shape, rows or columns that are spread over the same devices by an all-to-all there and one back. Inside shard_map,
where a device holds blocks, the same is said in collectives.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_zoo._core import mesh as meshes
from optax_zoo._core.layouts import Cuts
from optax_zoo._core.naming import speaker

ShardOver: TypeAlias = Any
"""None, a mesh axis, several of them, or a `NamedSharding` that names the mesh too."""

Solve: TypeAlias = Callable[[Sequence[Array]], Sequence[Array]]
"""Maps arrays of shape (m, n) or (number, m, n) to arrays like them."""


@dataclasses.dataclass(frozen=True)
class Share:
    """The mesh axes over whose devices matrices are shared out, and their mesh if it was given."""

    axes: tuple[str, ...]
    mesh: Any = None

    @classmethod
    def of(cls, shard_over: ShardOver) -> "Share | None":
        """Reads the argument of this name.

        Raises:
          TypeError: neither names of mesh axes nor a NamedSharding.
        """
        if shard_over is None:
            return None
        if isinstance(shard_over, NamedSharding):
            cut = [entry for entry in shard_over.spec if entry is not None]
            axes = itertools.chain.from_iterable((entry,) if isinstance(entry, str) else entry for entry in cut)
            return cls(_named(tuple(axes), shard_over), shard_over.mesh)
        axes = (shard_over,) if isinstance(shard_over, str) else shard_over
        if not isinstance(axes, tuple | list) or not all(isinstance(axis, str) for axis in axes):
            raise TypeError(
                f"{speaker()}: shard_over must be a mesh axis such as 'data', several, or a NamedSharding, got"
                f" {shard_over!r}"
            )
        return cls(_named(tuple(axes), shard_over))

    def is_manual(self) -> bool:
        """Whether the code runs inside a shard_map over these axes."""
        return set(self.axes) <= set(jax.sharding.get_abstract_mesh().manual_axes)

    def mesh_of(self, leaves: Sequence[Array], name: str) -> Any:
        """The mesh that was given, that of the leaves, or that of `jax.set_mesh`.

        Raises:
          ValueError: none of them has these axes.
        """
        seen = [jax.sharding.get_abstract_mesh(), self.mesh, *(jax.typeof(x).sharding.mesh for x in leaves)]
        meshes_with_axes = [m for m in seen if m is not None and m.axis_names]
        for candidate in meshes_with_axes:
            if set(self.axes) <= set(candidate.axis_names):
                return candidate
        found = f"; the mesh here has {meshes_with_axes[0].axis_names}" if meshes_with_axes else ""
        raise ValueError(
            f"{name}: shard_over={self.axes[0] if len(self.axes) == 1 else self.axes!r} needs a mesh with"
            f" {'this axis' if len(self.axes) == 1 else 'these axes'}{found}; place the parameters with a NamedSharding"
            " or run under jax.set_mesh(mesh)"
        )


def _named(axes: tuple[str, ...], given: Any) -> tuple[str, ...]:
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"{speaker()}: shard_over must name mesh axes, each once, got {given!r}")
    return axes


@dataclasses.dataclass(frozen=True)
class Hands:
    """How a stack of equal matrices is dealt: device d has those from d * rounds on, and perhaps one of the rest.

    Attributes:
      devices: how many there are.
      rounds: matrices that every device solves.
      owners: the devices of the matrices that are left over, in order.
    """

    devices: int
    rounds: int
    owners: tuple[int, ...]

    def dealt(self, stack: Array) -> Array:
        """The stack in the devices' order, equally many for each; in the place of what is not there, zeros."""
        if not self.owners:
            return stack
        even, shape = self.rounds * self.devices, stack.shape[1:]
        mine = dict(zip(self.owners, range(even, len(stack)), strict=True))
        nothing = jnp.zeros(shape, stack.dtype)
        rest = jnp.stack([stack[mine[d]] if d in mine else nothing for d in range(self.devices)])
        hands = [stack[:even].reshape(self.devices, self.rounds, *shape), rest[:, None]]
        return jnp.concatenate(hands, axis=1).reshape(-1, *shape)

    def collected(self, dealt: Array) -> Array:
        """The stack that was dealt."""
        if not self.owners:
            return dealt
        shape = dealt.shape[1:]
        hands = dealt.reshape(self.devices, self.rounds + 1, *shape)
        rest = [hands[d, self.rounds][None] for d in self.owners]
        return jnp.concatenate([hands[:, : self.rounds].reshape(-1, *shape), *rest])


@dataclasses.dataclass(frozen=True)
class Deal:
    """Who solves which matrices of all stacks.

    Attributes:
      hands: of each stack.
      turns: what is left over: in a turn a device solves one matrix of the stack given for it, or none (-1).
    """

    hands: tuple[Hands, ...]
    turns: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, counts: Sequence[int], costs: Sequence[float], devices: int) -> "Deal":
        """Deals stacks of so many matrices out evenly; matrices left over that cost alike are solved at the same time.

        Args:
          counts: of matrices.
          costs: of one matrix.
          devices: how many there are.
        """
        left = [k for k in sorted(range(len(counts)), key=lambda k: -costs[k]) for _ in range(counts[k] % devices)]
        owners: list[list[int]] = [[] for _ in counts]
        for place, k in enumerate(left):
            owners[k].append(place % devices)
        left += [-1] * (-len(left) % devices)
        hands = tuple(Hands(devices, n // devices, tuple(own)) for n, own in zip(counts, owners, strict=True))
        return cls(hands, tuple(tuple(left[i : i + devices]) for i in range(0, len(left), devices)))

    def solve(self, solve: Solve, mine: Sequence[Array], device: Array) -> list[Array]:
        """One device's matrices of each stack."""
        even = [stack[i] for hand, stack in zip(self.hands, mine, strict=True) for i in range(hand.rounds)]
        solved = iter(solve(even))
        out = [list(itertools.islice(solved, hand.rounds)) for hand in self.hands]
        rest = {k: jnp.zeros_like(mine[k][0]) for turn in self.turns for k in turn if k >= 0}
        for turn in self.turns:
            kinds = sorted(set(turn) - {-1})
            left = {k: mine[k][self.hands[k].rounds] for k in kinds}
            branches = [functools.partial(_solve_one, solve, k) for k in (*kinds, -1)]
            which = jnp.asarray([(*kinds, -1).index(k) for k in turn])[device]
            for k, o in lax.switch(which, branches, left).items():
                rest[k] = rest[k] + o
        return [jnp.stack([*matrices, *([rest[k]] if k in rest else [])]) for k, matrices in enumerate(out)]


def _solve_one(solve: Solve, kind: int, left: dict[int, Array]) -> dict[int, Array]:
    return {k: solve([x])[0] if k == kind else jnp.zeros_like(x) for k, x in left.items()}


def shared_under_jit(
    solve: Solve,
    cost: Callable[[int, int], float],
    stacks: Sequence[Array],
    specs: Sequence[P | None],
    share: Share,
    mesh: Any,
) -> list[Array]:
    """Solves stacks of global matrices, each device its share.

    Args:
      solve: see `Solve`.
      cost: work on one (m, n) matrix.
      stacks: of shapes (number, m, n).
      specs: how the results are to be sharded; None: as their consumers want, whole along the first axis.
      share: the mesh axes.
      mesh: theirs.
    """
    devices = math.prod(mesh.shape[axis] for axis in share.axes)
    deal = Deal.of([len(x) for x in stacks], [cost(*x.shape[1:]) for x in stacks], devices)

    def local(mine: list[Array]) -> list[Array]:
        return deal.solve(solve, mine, lax.axis_index(share.axes))

    def constrained(x: Array, spec: P) -> Array:
        return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def halfway(x: Array, spec: P) -> Array:
        """Shares that are still cut by other axes: there and back the compiler has one thing to do at a time."""
        kept = [None if set(_names(entry)) & set(share.axes) else entry for entry in spec[1:]]
        return x if P.UNCONSTRAINED in kept else constrained(x, P(share.axes, *kept))

    def there(hands: Hands, stack: Array, spec: P) -> Array:
        return constrained(
            halfway(constrained(hands.dealt(stack), P(None, *spec[1:])), spec), P(share.axes, None, None)
        )

    def back(hands: Hands, solved: Array, spec: P) -> Array:
        return hands.collected(constrained(halfway(solved, spec), P(None, *spec[1:])))

    others = set(jax.sharding.get_abstract_mesh().manual_axes)
    over = jax.shard_map(
        local, mesh=mesh, in_specs=P(share.axes), out_specs=P(share.axes), axis_names=set(mesh.axis_names) - others
    )
    unknown = P(None, P.UNCONSTRAINED, P.UNCONSTRAINED)
    wanted = [unknown if spec is None else spec for spec in specs]
    mine = list(map(there, deal.hands, stacks, wanted))
    return list(map(back, deal.hands, over(mine), wanted))


def _names(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else (entry,) if isinstance(entry, str) else ()


def shared_in_shard_map(
    solve: Solve, cost: Callable[[int, int], float], stacks: Sequence[Array], cuts: Sequence[Cuts], share: Share
) -> list[Array]:
    """Solves stacks of which this device holds blocks, each device its share of whole matrices.

    Args:
      solve, cost, share: as in `shared_under_jit`.
      stacks: blocks of shapes (number, local m, local n).
      cuts: of each stack.

    Returns:
      Blocks like `stacks`.
    """
    wholes = [
        tuple(n * math.prod(map(lax.axis_size, names)) for n, names in zip(x.shape[1:], cut[1:], strict=True))
        for x, cut in zip(stacks, cuts, strict=True)
    ]
    deal = Deal.of([len(x) for x in stacks], [cost(*whole) for whole in wholes], lax.axis_size(share.axes))
    journeys = [_Journey.of(cut, share) for cut in cuts]
    mine = [trip.there(hands.dealt(x)) for trip, hands, x in zip(journeys, deal.hands, stacks, strict=True)]
    solved = deal.solve(solve, mine, lax.axis_index(share.axes))
    return [
        hands.collected(trip.back(o, x.shape[1:]))
        for trip, hands, o, x in zip(journeys, deal.hands, solved, stacks, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Journey:
    """How blocks of a dealt stack become a device's whole matrices, and the way back.

    Attributes:
      first: axes of the stack that the share's mesh axes cut together with others: assembled before the deal.
      swapped: axes of the share in their order, each with the axis of the stack that it alone cuts, or None.
      last: axes of the stack that other mesh axes cut: assembled after the deal.
    """

    first: tuple[tuple[int, tuple[str, ...]], ...]
    swapped: tuple[tuple[str, int | None], ...]
    last: tuple[tuple[int, tuple[str, ...]], ...]

    @classmethod
    def of(cls, cuts: Cuts, share: Share) -> "_Journey":
        alone = {names[0]: axis for axis, names in enumerate(cuts) if len(names) == 1 and names[0] in share.axes}
        rest = [(axis, names) for axis, names in enumerate(cuts) if names and axis not in alone.values()]
        return cls(
            tuple(pair for pair in rest if set(pair[1]) & set(share.axes)),
            tuple((name, alone.get(name)) for name in share.axes),
            tuple(pair for pair in rest if not set(pair[1]) & set(share.axes)),
        )

    def there(self, dealt: Array) -> Array:
        """From all hands' blocks to this device's hand of whole matrices."""
        dealt = _assembled(dealt, self.first)
        for name, axis in self.swapped:
            if axis is None:
                size = len(dealt) // lax.axis_size(name)
                dealt = lax.dynamic_slice_in_dim(dealt, lax.axis_index(name) * size, size)
            else:
                dealt = lax.all_to_all(dealt, name, split_axis=0, concat_axis=axis, tiled=True)
        return _assembled(dealt, self.last)

    def back(self, hand: Array, local: tuple[int, ...]) -> Array:
        """From this device's hand to all hands' blocks of the local size."""
        hand = _cut(hand, self.last, local)
        for name, axis in reversed(self.swapped):
            if axis is None:
                hand = meshes.gathered(hand, name, 0)
            else:
                hand = lax.all_to_all(hand, name, split_axis=axis, concat_axis=0, tiled=True)
        return _cut(hand, self.first, local)


def _assembled(stack: Array, axes: Sequence[tuple[int, tuple[str, ...]]]) -> Array:
    for axis, names in axes:
        stack = meshes.gathered(stack, names, axis)
    return stack


def _cut(stack: Array, axes: Sequence[tuple[int, tuple[str, ...]]], local: tuple[int, ...]) -> Array:
    for axis, names in axes:
        size = local[axis - 1]
        stack = lax.dynamic_slice_in_dim(stack, lax.axis_index(names) * size, size, axis)
    return stack
