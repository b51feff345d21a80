"""Running any optimizer on a tree of which some leaves are frozen: their updates are 0, their state stays."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.trees import Leaves, PyTree, is_none

Path: TypeAlias = tuple[Any, ...]

_SHARED = -1
"""The owner of what a state keeps for no parameter in particular, such as a count."""


class Thawed:
    """One update of `inner` that leaves frozen leaves, and what its state keeps of them, as they are.

    Args:
      inner: any transformation.
      leaves: the gradient.
      params: the parameters of its leaves.
      state: of `inner`.
      frozen: a scalar flag for each leaf, or None where there is no parameter.
      extra: further arguments of the update.
    """

    def __init__(
        self,
        inner: optax.GradientTransformationExtraArgs,
        leaves: Leaves,
        params: list[Any],
        state: PyTree,
        frozen: Sequence[Array | None],
        extra: Mapping[str, Any],
    ) -> None:
        self._inner, self._leaves, self._params, self._extra = inner, leaves, params, extra
        self._frozen = frozen
        self._arrays, self._structure = jax.tree.flatten(state)
        owner = owners(inner.init, leaves, params)
        if len(owner) != len(self._arrays):
            raise ValueError(f"{leaves.speaker}: the state of inner is not what its init makes of these parameters")
        self._owner = list(owner.values())
        self._position = {path: n for n, path in enumerate(owner)}

    def select(self) -> tuple[list[Any], PyTree]:
        """Updates and state of `inner` on the whole tree, with a selection afterwards.

        It sees a zero gradient for frozen leaves, which then count in no norm.
        """

        def keep(i: int, old: Any, new: Any) -> Any:
            flag = None if i == _SHARED else self._frozen[i]
            return new if flag is None or new is None else jnp.where(flag, old, new)

        zeros = [None if g is None else jnp.zeros_like(g) for g in self._leaves.values]
        grads = [g if g is None else keep(i, zeros[i], g) for i, g in enumerate(self._leaves.values)]
        unflatten = self._leaves.unflatten
        state = jax.tree.unflatten(self._structure, self._arrays)
        updates, state = self._inner.update(unflatten(grads), state, unflatten(self._params), **self._extra)
        us = self._leaves.match("the updates of inner", updates)
        us = [u if u is None else keep(i, jnp.zeros_like(u), u) for i, u in enumerate(us)]
        arrays = map(keep, self._owner, self._arrays, jax.tree.leaves(state))
        return us, jax.tree.unflatten(self._structure, list(arrays))

    def skip(self, units: Iterable[Sequence[int]]) -> tuple[list[Any], PyTree]:
        """Updates and state of `inner` on each unit of leaves alone, whose flags are equal, under a condition.

        What it is given of its state for a unit is what its own `init` makes for these leaves, all others being masked
        away as by `optax.masked`.

        Raises:
          ValueError: `inner` keeps numbers of several leaves in one array.
        """
        us = list(self._leaves.values)
        arrays = list(self._arrays)
        for unit in units:
            updates, owned = self._unless_frozen(unit)
            for i, u in zip(unit, updates, strict=True):
                us[i] = u
            for n, x in owned.items():
                arrays[n] = x
        for n, x in self._part(())[1].items():
            arrays[n] = x
        return us, jax.tree.unflatten(self._structure, arrays)

    def _unless_frozen(self, unit: Sequence[int]) -> tuple[list[Any], dict[int, Any]]:
        def go() -> tuple[list[Any], dict[int, Any]]:
            us, arrays = self._part(unit)
            return us, {n: x for n, x in arrays.items() if self._owner[n] != _SHARED}

        us, owned = jax.eval_shape(go)

        def rest() -> tuple[list[Any], dict[int, Any]]:
            zeros = [jnp.zeros_like(self._leaves.values[i], u.dtype) for i, u in zip(unit, us, strict=True)]
            return zeros, {n: self._arrays[n] for n in owned}

        return jax.lax.cond(self._frozen[unit[0]], rest, go)

    def _part(self, unit: Sequence[int]) -> tuple[list[Any], dict[int, Any]]:
        """Updates of these leaves, and by position the new arrays of their part of the state, the shared included."""
        grads, params = (only(self._leaves, unit, values) for values in (self._leaves.values, self._params))
        shapes = jax.eval_shape(self._inner.init, params)
        positions = [self._place(*pair) for pair in jax.tree_util.tree_leaves_with_path(shapes)]
        state = jax.tree.unflatten(jax.tree.structure(shapes), [self._arrays[n] for n in positions])
        extra = {key: self._share(value, unit) for key, value in self._extra.items()}
        updates, state = self._inner.update(grads, state, params, **extra)
        us = Leaves(self._leaves.speaker, "the gradient", grads).match("the updates of inner", updates)
        return us, dict(zip(positions, jax.tree.leaves(state), strict=True))

    def _place(self, path: Path, array: Any) -> int:
        position = self._position.get(path)
        if position is None or jnp.shape(self._arrays[position]) != array.shape:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{self._leaves.speaker}: the state of inner at {where} cannot be divided by parameters")
        return position

    def _share(self, value: Any, unit: Sequence[int]) -> Any:
        """The same part of an extra argument that is shaped like the gradient, such as `grad`; others whole."""
        values, structure = jax.tree.flatten(value, is_leaf=is_none)
        return only(self._leaves, unit, values) if structure == self._leaves.treedef else value


def only(leaves: Leaves, kept: Iterable[int], values: list[Any]) -> PyTree:
    """`values` in the structure of `leaves`, with `MaskedNode` in the place of all but the leaves numbered `kept`."""
    chosen = set(kept)
    return leaves.unflatten([value if i in chosen else optax.MaskedNode() for i, value in enumerate(values)])


def owners(init: Callable[[PyTree], PyTree], leaves: Leaves, params: list[Any]) -> dict[Path, int]:
    """The number of the leaf that each array of a state belongs to, or -1 for none, by path in the state's order.

    The number is read bit by bit, from the arrays that are there when only the leaves are whose numbers have this bit.
    What is there with the odd leaves alone and with the even ones alone belongs to none.
    """
    numbers = range(len(params))

    def present(kept: Iterable[int]) -> list[Path]:
        state = jax.eval_shape(init, only(leaves, kept, params))
        return [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]

    bits = [set(present(i for i in numbers if i >> bit & 1)) for bit in range(max(1, (len(params) - 1).bit_length()))]
    even = set(present(i for i in numbers if not i & 1))

    def owner(path: Path) -> int:
        is_shared = path in even and path in bits[0]
        return _SHARED if is_shared else sum(1 << bit for bit, paths in enumerate(bits) if path in paths)

    return {path: owner(path) for path in present(numbers)}
