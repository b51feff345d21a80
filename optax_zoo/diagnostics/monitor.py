"""What happens between gradient and update, as numbers in the optimizer state.

No paper's method: the scalars that one looks at when training goes wrong (sizes of gradients, updates and parameters,
how often clipping is active, how much of the network stands still), readable under `jit` and from checkpoints.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core import mesh
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, scalar_dtype, split_decay
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.lookup import found
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.slots import at_least_float32
from optax_zoo._core.trees import Leaves, PyTree

_ROUNDINGS = 8
"""How many units in the last place of its dtype an entry may differ by rounding alone."""


class MonitorState(NamedTuple):
    """The scalars, and the state of what they are measured around."""

    count: Array  # steps taken
    gradient_rms: Array  # of what came
    update_rms: Array  # of what left
    param_rms: Array  # 0 without params
    update_ratio: Array  # update_rms / param_rms
    clip_rate: Array  # share of steps
    clipped_share: Array  # share of entries
    frozen_share: Array  # share of entries
    inner_state: optax.OptState = ()  # of the transformation


_NAMES = MonitorState._fields[1:-1]


@method
def monitor(
    inner: optax.GradientTransformation, decay: ScalarOrSchedule = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Measures what `inner` does, and leaves its updates as they are.

    Around a whole optimizer it tells how large its steps are; around one link of a chain, such as
    `monitor(optax.clip_by_global_norm(1.0))`, what this link changes. `monitor_values` reads the numbers, all of
    them over the entries of the whole tree:

    - `gradient_rms`, `update_rms`, `param_rms`: root mean squares of what goes into `inner`, of what it returns, and
      of the parameters.
    - `update_ratio`: `update_rms / param_rms`. Like `param_rms` it is 0 where `update` is called without params.
    - `clip_rate`: the share of steps in which `inner` changed an entry by more than rounding.
    - `clipped_share`: the share of entries that it changed so.
    - `frozen_share`: the share of entries whose update is exactly 0.

    Args:
      inner: any transformation; extra arguments are forwarded to it.
      decay: in [0, 1]. 0: the numbers are the last step's, and `clip_rate` is over all steps so far. Otherwise all
        are exponential moving averages with this decay, the first step counting in full. A number that is not
        finite is shown, and forgotten at the next step.

    Returns:
      The transformation, with seven scalars of state more.

    Raises:
      TypeError: `inner` is not a gradient transformation.
      ValueError: `decay` is out of its range, or `inner` returns another tree than it is given.
    """
    name = speaker()
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{name}: inner must be an optax.GradientTransformation, got {inner!r}")
    inner = optax.with_extra_args_support(inner)

    def step(h: Any, s: MonitorState) -> dict[str, Array]:
        take = jnp.where(h.count == 0, 1.0, split_decay(h.decay).take)

        def average(field: str) -> Array:
            old, new = getattr(s, field), getattr(h, field)
            part = jnp.where(take == 1.0, 1.0 / h.t, take) if field == "clip_rate" else take
            return jnp.where(jnp.isfinite(old) & jnp.isfinite(new), (1.0 - part) * old + part * new, new)

        return {field: average(field) for field in _NAMES}

    scalars: dict[str, Any] = dict.fromkeys(_NAMES, 0.0)

    @leafwise(MonitorState, hyper={"decay": decay}, step=step, needs=_NAMES, **scalars)
    def averages(u: Array, s: MonitorState, h: Any) -> tuple[Array, MonitorState]:
        return u, s

    def init(params: PyTree) -> MonitorState:
        own: Any = averages.init(())
        return own._replace(inner_state=inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        returned, inner_state = inner.update(updates, state.inner_state, params, **extra)
        leaves = Leaves(name, "the gradient", updates)
        us = leaves.match("the updates of inner", returned)
        ps = [None] * len(us) if params is None else leaves.match("params", params)
        _, state = averages.update((), state, None, **_measured(leaves.values, us, ps))
        return returned, state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _measured(gs: list[Any], us: list[Any], ps: list[Any]) -> dict[str, Array]:
    """The scalars of one step, over all entries of the leaves that have a gradient and an update."""
    seen = [(g, u, p) for g, u, p in zip(gs, us, ps, strict=True) if _is_floating(g) and _is_floating(u)]
    totals = dict.fromkeys(("gradient", "update", "param", "clipped", "frozen"), jnp.zeros((), scalar_dtype()))
    totals |= mesh.sum_leaves(_sums(*leaf) for leaf in seen)
    entries = max(1, sum(mesh.global_size(g) for g, _, _ in seen))
    gradient, update, param = (jnp.sqrt(totals[name] / entries) for name in ("gradient", "update", "param"))
    return {
        "gradient_rms": gradient,
        "update_rms": update,
        "param_rms": param,
        "update_ratio": jnp.where(param > 0, update / jnp.where(param > 0, param, 1.0), 0.0),
        "clip_rate": jnp.where(totals["clipped"] > 0, 1.0, 0.0),
        "clipped_share": totals["clipped"] / entries,
        "frozen_share": totals["frozen"] / entries,
    }


def _sums(g: Array, u: Array, p: Any) -> dict[str, Array]:
    """One leaf's sums of squares and numbers of entries, on this device."""
    rounding = _ROUNDINGS * max(float(jnp.finfo(x.dtype).eps) for x in (g, u))
    g, u = (x.astype(at_least_float32(x.dtype)) for x in (g, u))
    near = jnp.abs(u - g) <= rounding * jnp.minimum(jnp.abs(u), jnp.abs(g))
    clipped = (u != g) & ~near & ~(jnp.isnan(u) & jnp.isnan(g))
    numbers = {"gradient": abs_sq(g), "update": abs_sq(u), "clipped": clipped, "frozen": u == 0}
    if _is_floating(p):
        numbers["param"] = abs_sq(p.astype(at_least_float32(p.dtype)))
    return {name: jnp.sum(x, dtype=scalar_dtype()) for name, x in numbers.items()}


def _is_floating(x: Any) -> bool:
    return x is not None and jnp.issubdtype(x.dtype, jnp.inexact)


@method
def monitor_values(opt_state: PyTree) -> dict[str, Array]:
    """The scalars of every monitor in an optimizer state, found through any nesting.

    Args:
      opt_state: any optimizer state.

    Returns:
      `{"gradient_rms": ..., ...}`, ready for a logger. With several monitors the keys begin with their number in the
      order of the state, an outer one before those inside it: `{"0/gradient_rms": ..., "1/gradient_rms": ...}`. Empty
      without a monitor.
    """
    states = _all_states(opt_state)
    prefixes = [f"{i}/" for i in range(len(states))] if len(states) > 1 else [""]
    return {
        f"{prefix}{field}": getattr(state, field)
        for prefix, state in zip(prefixes, states, strict=False)
        for field in _NAMES
    }


def _all_states(opt_state: PyTree) -> list[MonitorState]:
    return [state for outer in found(opt_state, MonitorState) for state in (outer, *_all_states(outer.inner_state))]
