"""GradES: Significantly Faster Training in Transformers with Gradient-Based Early Stopping.

Qifu Wen, Xi Zeng, Zihan Zhou, Shuaijun Liu, Mehdi Hosseinzadeh, Ningxin Su, Reza Rawassizadeh, 2025,
arXiv:2509.01842.
Components of a network converge at different times: each is frozen for good once it has nearly stopped moving.

Differs from the authors' code: nothing for `monitor="weight_change"`, which is what both of their codes watch. The
paper's first version watches the L1 norm of the gradient ("gradient"), its third the gradient's change
("gradient_change"; UNVERIFIED: that it is taken between checks, as the weights' is). Their separate thresholds for
vision and language components are two `grades` inside `optax.partition`. The first check, which has nothing to compare
with, never freezes.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core import hyper, mesh
from optax_zoo._core.averages import stepped
from optax_zoo._core.freezing import Thawed
from optax_zoo._core.hyper import ScalarOrSchedule, choice
from optax_zoo._core.lookup import found
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, at_least_float32, zeros
from optax_zoo._core.trees import Leaves, PyTree, per_leaf, stands_for_params

Monitor = Literal["weight_change", "gradient", "gradient_change"]
Groups: TypeAlias = Any
"""A (prefix) tree of labels, or a function of the parameters that returns one: equal labels are one component."""

_RANGES = {
    "tau": "[0, inf)",
    "total_steps": "[1, inf)",
    "alpha": "[0, 1)",
    "compute_interval": "[1, inf)",
    "min_ndim": "[0, inf)",
}


class GradesState(NamedTuple):
    """What is frozen, and what the checks compare with."""

    count: Array  # steps taken
    start: Array  # first freezing step
    components: Array  # that may freeze
    frozen_components: Array  # frozen so far
    change: PerLeaf  # at last check
    frozen: PerLeaf  # for good
    previous: PerParameter  # of last check
    inner_state: optax.OptState  # of the optimizer


@method
def grades(
    inner: optax.GradientTransformation,
    tau: ScalarOrSchedule,
    total_steps: int | Array,
    alpha: ScalarOrSchedule = 0.3,
    compute_interval: int | Array = 1,
    monitor: Monitor = "weight_change",
    groups: Groups | None = None,
    min_ndim: int | Array = 0,
    *,
    skip_frozen: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """GradES (arXiv:2509.01842): freezes each component once what is watched of it falls below tau.

    A frozen leaf gets the update 0, no weight decay, and its part of the state of `inner` stays; `inner` sees a zero
    gradient for it, so that it counts in no norm. `grades_frozen` and `grades_frozen_fraction` read the state; what
    the last check measured is its field `change`, from which a tau can be chosen.

    Args:
      inner: a complete optimizer, its learning rate and weight decay included.
      tau: threshold >= 0 of an L1 norm summed over a component, which grows with its size and with the learning rate.
      total_steps: length of the run.
      alpha: share of the run, in [0, 1), before which nothing is frozen.
      compute_interval: steps between two checks, >= 1.
      monitor: "weight_change" since the last check, the "gradient" itself, or the "gradient_change" since then.
      groups: a (prefix) tree of labels, or a function of the gradients that returns one; leaves with equal labels
        are frozen together. None: every leaf alone.
      min_ndim: leaves with fewer dimensions are neither watched nor frozen.
      skip_frozen: runs `inner` on each component alone, under a `jax.lax.cond`, so that a frozen one costs no work.
        Only for an `inner` whose update of a leaf looks at no other leaf: no global norm, no clipping by one. It pays
        where a step is expensive, as Muon's; an element-wise one costs less than the copies that XLA:CPU makes of what
        a `cond` returns.

    Returns:
      The optimizer with one more number of state per parameter, none more for `monitor="gradient"`.

    Raises:
      TypeError: `inner` is not a gradient transformation.
      ValueError: a number out of its range, an unknown `monitor`, or int(total_steps * alpha) <= compute_interval; in
        `update`, params are missing, or with `skip_frozen` the state of `inner` cannot be divided by parameters.
    """
    name = speaker()
    choice("monitor", monitor, Monitor)
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{name}: inner must be an optax.GradientTransformation, got {inner!r}")
    inner = optax.with_extra_args_support(inner)
    values = hyper.checked(
        {
            "tau": tau,
            "total_steps": total_steps,
            "alpha": alpha,
            "compute_interval": compute_interval,
            "min_ndim": min_ndim,
        },
        _RANGES,
    )
    remembers = monitor != "gradient"
    known = all(isinstance(value, int | float) for value in (total_steps, alpha, compute_interval))
    if known and _first_freezing_step(total_steps, alpha) <= compute_interval:
        raise ValueError(
            f"{name}: int(total_steps * alpha) must be larger than compute_interval, whose first check has nothing"
            f" to compare with; got int({total_steps} * {alpha}) and {compute_interval}"
        )

    def init(params: PyTree) -> GradesState:
        leaves = Leaves(name, "params", params)
        leaves.only_inexact()

        def each(first: Any) -> PyTree:
            if stands_for_params(params):
                return first
            return leaves.unflatten([leaf if leaf is None else first.copy() for leaf in leaves.values])

        return GradesState(
            count=jnp.zeros((), jnp.int32),
            start=_number(0),
            components=_number(0),
            frozen_components=_number(0),
            change=each(_number(0)),
            frozen=each(jnp.zeros((), bool)),
            previous=jax.tree.map(zeros().init, params) if remembers else None,
            inner_state=inner.init(params),
        )

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(f"{name}: needs params; call update(grads, state, params)")
        leaves = Leaves(name, "the gradient", updates)
        leaves.only_inexact()
        ps = leaves.match("params", params)
        leaves.same_shapes("params", ps)
        frozen, change = (leaves.match(f"the state's {f}", getattr(state, f)) for f in ("frozen", "change"))
        previous: list[Any] = [None] * len(ps)
        if remembers:
            previous = leaves.match("the state's previous", state.previous)
        units = _units(leaves, groups)

        h = hyper.resolve(values, state.count)
        t, every = state.count + 1, jnp.asarray(h["compute_interval"], jnp.int32)
        start = _number(_first_freezing_step(h["total_steps"], h["alpha"]))
        checks = t % every == 0
        freezes = checks & (_number(t) >= start) & (t >= 2 * every)

        thawed = Thawed(inner, leaves, ps, state.inner_state, frozen, extra)
        us, inner_state = thawed.skip(unit.leaves for unit in units) if skip_frozen else thawed.select()

        def watch(chosen: list[_Unit], when: Array) -> list[Array]:
            """The L1 norm of what is watched in each unit; at checks `previous` is brought up to date."""
            kept = [i for unit in chosen for i in unit.leaves]
            old = {i: previous[i] for i in kept} if remembers else {}

            def measure() -> tuple[list[Array], dict[int, Any]]:
                now = {i: stepped(ps[i], us[i]) if monitor == "weight_change" else leaves.values[i] for i in kept}
                sizes = [{str(n): _l1(now[i], old.get(i))} for n, unit in enumerate(chosen) for i in unit.leaves]
                totals = mesh.sum_leaves(sizes)
                norms = [_number(totals[str(n)]) for n in range(len(chosen))]
                return norms, {i: now[i].astype(x.dtype) for i, x in old.items()}

            if skip_frozen:
                norms, seen = jax.lax.cond(when, measure, lambda: ([_number(0)] * len(chosen), old))
            else:
                norms, seen = measure()
                seen = {i: jnp.where(when, x, old[i]) for i, x in seen.items()}
            for i, x in seen.items():
                previous[i] = x
            return norms

        if skip_frozen:
            norms = [norm for unit in units for norm in watch([unit], checks & ~frozen[unit.leaves[0]])]
        else:
            norms = watch(units, checks)

        component = jnp.asarray([unit.component for unit in units], jnp.int32)
        n = len({unit.component for unit in units})
        may_freeze = jnp.asarray([unit.ndim for unit in units], jnp.int32) >= h["min_ndim"]
        was_frozen = jnp.asarray([frozen[unit.leaves[0]] for unit in units], bool)
        last = jnp.asarray([change[unit.leaves[0]] for unit in units], hyper.scalar_dtype())
        size = jax.ops.segment_sum(jnp.where(may_freeze, jnp.asarray(norms, last.dtype), 0.0), component, n)[component]
        size = jnp.where(checks & ~was_frozen, size, last)
        is_frozen = was_frozen | (may_freeze & freezes & (size < h["tau"]))
        for u, unit in enumerate(units):
            for i in unit.leaves:
                change[i], frozen[i] = size[u], is_frozen[u]
        components, frozen_components = (
            _number(jnp.sum(jax.ops.segment_max(flags.astype(jnp.int32), component, n) > 0))
            for flags in (may_freeze, is_frozen)
        )

        return leaves.unflatten(us), GradesState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            start=start,
            components=components,
            frozen_components=frozen_components,
            change=leaves.unflatten(change),
            frozen=leaves.unflatten(frozen),
            previous=leaves.unflatten(previous) if remembers else None,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


class _Unit(NamedTuple):
    """Leaves of one component and of equally many dimensions, which are frozen together."""

    component: int
    ndim: int
    leaves: list[int]


def _units(leaves: Leaves, groups: Groups | None) -> list[_Unit]:
    labels = range(len(leaves.values)) if groups is None else per_leaf(leaves, "groups", groups)
    components: dict[Any, int] = {}
    units: dict[tuple[int, int], _Unit] = {}
    for i, (leaf, label) in enumerate(zip(leaves.values, labels, strict=True)):
        if leaf is not None:
            key = components.setdefault(label, len(components)), jnp.ndim(leaf)
            units.setdefault(key, _Unit(*key, [])).leaves.append(i)
    return list(units.values())


def _l1(now: Array, before: Array | None) -> Array:
    """The sum of |now - before| over the entries on this device."""
    wide = at_least_float32(now.dtype)
    moved = now.astype(wide) if before is None else now.astype(wide) - before.astype(wide)
    return jnp.sum(jnp.abs(moved))


def _first_freezing_step(total_steps: Any, alpha: Any) -> Any:
    """int(total_steps * alpha), a Python number if both are."""
    if isinstance(total_steps, int | float) and isinstance(alpha, int | float):
        return int(total_steps * alpha)
    return jnp.floor(_number(total_steps) * _number(alpha))


def _number(x: Any) -> Array:
    return jnp.asarray(x, hyper.scalar_dtype())


@method
def grades_frozen(opt_state: PyTree) -> PyTree:
    """Which leaves are frozen.

    Args:
      opt_state: any optimizer state with a `grades` inside; found through any nesting.

    Returns:
      A tree of boolean scalars like the parameters, False for leaves that `grades` does not see.

    Raises:
      ValueError: there is no `grades` inside.
    """
    first, *others = (state.frozen for state in _states(opt_state))

    def flag(*flags: Any) -> Any:
        seen = [x for x in flags if not isinstance(x, optax.MaskedNode)]
        return seen[0] if seen else jnp.zeros((), bool)

    return jax.tree.map(flag, first, *others, is_leaf=lambda x: isinstance(x, optax.MaskedNode))


@method
def grades_frozen_fraction(opt_state: PyTree) -> Array:
    """The share of the components that are frozen, of those that may be; 1 is the time to stop.

    Args:
      opt_state: any optimizer state with a `grades` inside; found through any nesting.

    Raises:
      ValueError: there is no `grades` inside.
    """
    states = _states(opt_state)
    frozen, components = (sum(getattr(s, f) for s in states) for f in ("frozen_components", "components"))
    return frozen / jnp.maximum(components, 1)


def _states(opt_state: PyTree) -> list[GradesState]:
    states = found(opt_state, GradesState)
    if not states:
        raise ValueError(f"{speaker()}: the optimizer state has no grades(...) inside")
    return states


PAPER = register(
    Paper(
        name="grades",
        title="GradES: Significantly Faster Training in Transformers with Gradient-Based Early Stopping",
        authors=(
            "Wen, Qifu",
            "Zeng, Xi",
            "Zhou, Zihan",
            "Liu, Shuaijun",
            "Hosseinzadeh, Mehdi",
            "Su, Ningxin",
            "Rawassizadeh, Reza",
        ),
        year=2025,
        arxiv="2509.01842",
        kind="wrapper",
        make=grades,
        states=(GradesState,),
        needs=("params",),
        floats_per_parameter=1,
        elementwise=False,
        example={"tau": 1e-4, "total_steps": 1000},
        probe={"tau": 6e-3, "total_steps": 10},
        golden=("grades.sgd", "grades.adamw_interval"),
    )
)
