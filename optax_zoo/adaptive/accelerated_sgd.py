"""Faster Convergence of Stochastic Accelerated Gradient Descent under Interpolation.

Aaron Mishkin, Mert Pilanci, Mark Schmidt, 2024, arXiv:2404.02378.
Nesterov's estimating sequences for SGD on models that interpolate their data: any primal step that makes progress in
expectation is accelerated, and the price of the strong growth constant rho is sqrt(rho).

There is no code of the authors to differ from. Gradients are taken at y, which are the parameters being trained; the
state keeps v, and the primal iterate w = (y - share v) / (1 - share) is what `optax_zoo.eval_params` returns. The next
y depends on the rate of the next step, so that a schedule is evaluated one step ahead; a rate that is changed from
outside, as by `optax.inject_hyperparams`, is taken to stay.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.averages import evaluate
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, StepSchedule
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy
from optax_zoo._core.trees import PyTree


class AcceleratedSgdState(NamedTuple):
    """The estimating sequence; the parameters are y."""

    count: Array  # steps taken
    gamma: Array  # its curvature, 0 at first
    share: Array  # of v in y
    v: PerParameter  # its minimizer
    inner_state: Any = None  # of the primal step

    AVERAGED = "v"

    def eval_params(self, params: PyTree) -> PyTree:
        """w, from y = `params` and v."""
        return evaluate(lambda v, y, h: (y - h.share * v) / (1.0 - h.share), self.v, params, share=self.share)


@method
def accelerated_sgd(
    learning_rate: ScalarOrSchedule,
    strong_convexity: ScalarOrSchedule = 0.0,
    gamma0: ScalarOrSchedule | None = None,
    *,
    inner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Accelerated SGD (arXiv:2404.02378).

    Each step solves alpha^2 = eta (1 - alpha) gamma + eta alpha mu, and takes

        w' = y - eta g,   gamma' = (1 - alpha) gamma + alpha mu,
        v' = ((1 - alpha) gamma v + alpha mu y - alpha g) / gamma',
        y' = w' + alpha' gamma' / (gamma' + alpha' mu) (v' - w')   with the alpha' of the next step.

    Args:
      learning_rate: eta, >= 0; 1 / (rho L) in theory, for L-smooth functions with strong growth constant rho. A
        schedule is evaluated for the next step too.
      strong_convexity: mu, in [0, 1 / learning_rate].
      gamma0: first curvature, > 0; None: mu, or 1 / learning_rate if mu is 0. Of a schedule the first value counts.
      inner: an optimizer whose step takes the place of -eta g in w', of which `learning_rate` states the progress: a
        step lowers the loss by learning_rate / 2 times the squared gradient. None: SGD.

    Returns:
      The optimizer, which needs params; one number of state per parameter beyond `inner`. Its update must not be
      rescaled afterwards.

    Raises:
      TypeError: `inner` is not a gradient transformation.
      ValueError: a number out of its range; in `update`, params are missing.
    """
    if inner is not None and not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{speaker()}: inner must be an optax.GradientTransformation, got {inner!r}")
    hyper = {"learning_rate": learning_rate, "next_rate": _one_ahead(learning_rate)}
    hyper |= {"strong_convexity": strong_convexity} | ({} if gamma0 is None else {"gamma0": gamma0})

    def step(h: Any, s: AcceleratedSgdState) -> dict[str, Any]:
        mu = h.strong_convexity

        def begun(gamma: Array, eta: Scalar) -> Array:
            first = jnp.where(mu > 0, mu, _ratio(1.0, eta)) if gamma0 is None else h.gamma0
            return jnp.where(gamma > 0, gamma, first)

        gamma = begun(s.gamma, h.learning_rate)
        alpha = _alpha(h.learning_rate, gamma, mu)
        after = (1 - alpha) * gamma + alpha * mu
        coming = begun(after, h.next_rate)
        next_alpha = _alpha(h.next_rate, coming, mu)
        return {
            "gamma": after,
            "share": _ratio(next_alpha * coming, coming + next_alpha * mu),
            "draw": _ratio(alpha * mu, after),
            "push": _ratio(alpha, after),
        }

    @leafwise(
        AcceleratedSgdState,
        hyper=hyper,
        ranges={"strong_convexity": _convexities(learning_rate), "gamma0": "(0, inf)"},
        step=step,
        gamma=0.0,
        share=0.0,
        v=copy(),
    )
    def rule(g: Array, s: AcceleratedSgdState, h: Any, p: Array) -> tuple[Array, AcceleratedSgdState]:
        v = s.v + h.draw * (p - s.v) - h.push * g
        dual = h.share * (v - p)
        return dual if inner else dual - (1 - h.share) * h.learning_rate * g, s._replace(v=v)

    return rule if inner is None else _with_primal(rule, optax.with_extra_args_support(inner))


def _with_primal(
    rule: optax.GradientTransformationExtraArgs, inner: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """`rule`, which moves y by share * (v - y), and the other share of the step of `inner`."""

    @leafwise(AcceleratedSgdState, gamma=0.0, share=0.0)
    def add(u: Array, s: AcceleratedSgdState, h: Any, p: Array) -> tuple[Array, AcceleratedSgdState]:
        return p + (1 - s.share) * u, s

    def init(params: PyTree) -> Any:
        state: Any = rule.init(params)
        return state._replace(inner_state=inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        dual, state = rule.update(updates, state, params)
        primal, inner_state = inner.update(updates, state.inner_state, params, **extra)
        return add.update(primal, state, dual)[0], state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _alpha(eta: Scalar, gamma: Array, mu: Scalar) -> Array:
    """The root in [0, 1] of alpha^2 + eta (gamma - mu) alpha - eta gamma, without cancellation."""
    slope = eta * (gamma - mu)
    root = jnp.sqrt(slope * slope + 4 * eta * gamma)
    alpha = jnp.where(slope < 0, 0.5 * (root - slope), _ratio(2 * eta * gamma, root + slope))
    return jnp.minimum(alpha, 1.0)


def _ratio(numerator: Scalar, denominator: Scalar) -> Array:
    """The quotient, 0 where the denominator is 0."""
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1.0, denominator))


def _convexities(learning_rate: ScalarOrSchedule) -> str:
    if isinstance(learning_rate, int | float) and learning_rate > 0:
        return f"[0, {1 / learning_rate}]"
    return "[0, inf)"


def _one_ahead(value: ScalarOrSchedule) -> ScalarOrSchedule:
    if isinstance(value, StepSchedule):
        return StepSchedule(lambda t: value(t + 1), f"{value!r} one step ahead")
    return (lambda count: value(count + 1)) if callable(value) else value


PAPER = register(
    Paper(
        name="accelerated_sgd",
        title="Faster Convergence of Stochastic Accelerated Gradient Descent under Interpolation",
        authors=("Mishkin, Aaron", "Pilanci, Mert", "Schmidt, Mark"),
        year=2024,
        arxiv="2404.02378",
        make=accelerated_sgd,
        states=(AcceleratedSgdState,),
        needs=("params",),
        floats_per_parameter=1,
        relative_learning_rate=10.0,
        breaks={"schedules": "the first step sees the schedule of learning_rate at 1"},
    )
)
