"""Multi-Agent Online Optimization with Delays: Asynchronicity, Adaptivity, and Optimism.

Yu-Guan Hsieh, Franck Iutzeler, Jerome Malick, Panayotis Mertikopoulos, 2020, arXiv:2012.11579, Algorithms 1 and 2.
Dual averaging over gradients that arrive late and in any order: the step shrinks with what arrived while each gradient
was on its way, which every agent can sum up without a clock.

Differs from the authors' code: there is none. AdaDelay+, whose step size also counts the points that are played and
not yet answered, is left out: an update knows only of arrivals. An arrival whose norm is not finite is skipped.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, check_range
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.lookup import found
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy, wide_zeros
from optax_zoo._core.trees import PyTree


class DelayedDualAveragingState(NamedTuple):
    """The dual average and what its step size follows from."""

    count: Array  # gradients received
    norm_sum: Array  # received norms, summed
    gamma: Array  # squares and lags
    x1: PerParameter  # the initial parameters
    s: PerParameter  # gradients times rate, summed


@method
def delayed_dual_averaging(
    learning_rate: ScalarOrSchedule,
    adaptive: bool = True,
    beta: ScalarOrSchedule = 0.0,
    max_delay: ScalarOrSchedule | None = None,
    max_norm: ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Delayed dual averaging with AdaDelay-Dist's step size (arXiv:2012.11579, Algorithms 1 and 2).

    Each update is given ONE gradient that has arrived, and what `received_norm_sum` was when the point was handed out
    at which it was taken:

        state = tx.init(params)
        played = params, received_norm_sum(state)   # to an agent, which answers some time later
        ...
        updates, state = tx.update(grads, state, params, norm_sum_at_play=played[1])

    The parameters become x_1 - eta S with S the sum of all gradients received, each times the learning rate.

    Args:
      learning_rate: R >= 0, in units of the parameters, meant to be at least |x* - x_1| / sqrt(2). Constant in the
        paper; a schedule weighs the gradients, since a decaying eta would lead back to x_1.
      adaptive: eta = 1 / sqrt(Gamma), where Gamma sums |g|^2 + 2 |g| times the norms received since the point was
        played; otherwise eta = 1 / (max_norm sqrt((1 + 2 max_delay) (received + max_delay + 1))).
      beta: Gamma's first value, >= 0; > 0 in the theorem.
      max_delay: bound on the delay, >= 0, in gradients; needed without `adaptive`.
      max_norm: bound on |g|, > 0; needed without `adaptive`.

    Returns:
      The optimizer, which needs params; two numbers of state per parameter. `update` takes `norm_sum_at_play`; absent,
      the gradient counts as taken at the current parameters.

    Raises:
      ValueError: a number out of its range, or a missing bound; in `update`, params are missing.
    """
    bounds = {"max_delay": max_delay, "max_norm": max_norm}
    ranges = {"beta": "[0, inf)", "max_delay": "[0, inf)", "max_norm": "(0, inf)"}
    for name, bound in bounds.items():
        if bound is not None:
            check_range(name, bound, ranges[name])
        elif not adaptive:
            raise ValueError(f"{speaker()}: adaptive=False needs {name}")

    def sums(g: Array, s: DelayedDualAveragingState, h: Any) -> dict[str, Array]:
        return {"square": jnp.sum(abs_sq(g))}

    def step(h: Any, s: DelayedDualAveragingState) -> dict[str, Any]:
        usable = jnp.isfinite(h.square) & jnp.isfinite(h.norm_sum_at_play)
        norm = jnp.sqrt(h.square)
        lag = jnp.maximum(s.norm_sum - h.norm_sum_at_play, 0.0)
        start = jnp.where(h.count == 0, h.beta, s.gamma)
        gamma = jnp.where(usable, start + norm * (norm + 2 * lag), start)
        if adaptive:
            eta = 1 / jnp.sqrt(jnp.where(gamma > 0, gamma, jnp.inf))
        else:
            eta = 1 / (h.max_norm * jnp.sqrt((1 + 2 * h.max_delay) * (h.t + h.max_delay + 1)))
        return {
            "usable": usable,
            "eta": eta,
            "gamma": gamma,
            "norm_sum": s.norm_sum + jnp.where(usable, norm, 0.0),
        }

    hyper = {"learning_rate": learning_rate, "beta": beta}

    @leafwise(
        DelayedDualAveragingState,
        hyper=hyper if adaptive else {**hyper, **bounds},
        ranges=ranges,
        needs=("norm_sum_at_play",),
        sums=sums,
        step=step,
        norm_sum=0.0,
        gamma=0.0,
        x1=copy(),
        s=wide_zeros(),
    )
    def rule(g: Array, s: DelayedDualAveragingState, h: Any, p: Array) -> tuple[Array, DelayedDualAveragingState]:
        total = s.s + jnp.where(h.usable, h.learning_rate * g, 0)
        return s.x1 - h.eta * total - p, s._replace(s=total)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, norm_sum_at_play: Any = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        then = state.norm_sum if norm_sum_at_play is None else norm_sum_at_play
        return rule.update(updates, state, params, **{**extra, "norm_sum_at_play": then})

    return optax.GradientTransformationExtraArgs(rule.init, update)


@method
def received_norm_sum(opt_state: PyTree) -> Array:
    """What to store with a point handed out now: the sum of the norms of the gradients received so far.

    Args:
      opt_state: an optimizer state with one of `delayed_dual_averaging` inside, through any nesting.

    Raises:
      ValueError: there is none, or more than one.
    """
    states = found(opt_state, DelayedDualAveragingState)
    if len(states) != 1:
        raise ValueError(f"{speaker()}: the state must hold one of delayed_dual_averaging, found {len(states)}")
    return states[0].norm_sum


PAPER = register(
    Paper(
        name="delayed_dual_averaging",
        title="Multi-Agent Online Optimization with Delays: Asynchronicity, Adaptivity, and Optimism",
        authors=("Hsieh, Yu-Guan", "Iutzeler, Franck", "Malick, Jérôme", "Mertikopoulos, Panayotis"),
        year=2020,
        arxiv="2012.11579",
        algorithm="Algorithm 2",
        make=delayed_dual_averaging,
        states=(DelayedDualAveragingState,),
        needs=("params",),
        floats_per_parameter=2,
        elementwise=False,
        relative_learning_rate=1000.0,
    )
)
