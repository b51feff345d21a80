"""Stochastic model-based minimization of weakly convex functions.

Damek Davis, Dmitriy Drusvyatskiy, 2018, arXiv:1803.06523; the truncated model is that of Hilal Asi, John C. Duchi,
2018, arXiv:1810.05633.
Each step minimises a model of the sample's loss plus |x - p|^2 / (2 lr). Models that know more than the gradient, such
as that the loss is nowhere below its minimum, do not overshoot however large lr is.

Differs from the authors' code: there is none; these are the models whose step has a closed form in value and gradient,
derived. A value or a squared norm that is not finite gives no step.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, choice
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register

Model = Literal["linear", "truncated", "prox_linear_abs", "prox_linear_hinge", "prox_point_least_squares"]


class StochasticModelState(NamedTuple):
    """No memory."""

    count: Array  # steps taken


@method
def stochastic_model(
    learning_rate: ScalarOrSchedule, model: Model = "truncated", f_min: ScalarOrSchedule = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Proximal steps on models of the sample's loss (arXiv:1803.06523, arXiv:1810.05633): p - s g.

    With G = |g|^2 over the whole tree and f the `value` given to `update`, of the sample that g is the gradient of:

    * "linear", f + <g, x - p>: s = lr, the stochastic gradient step, which needs no value;
    * "truncated", max(f + <g, x - p>, f_min): s = min(lr, max(f - f_min, 0) / G), the Polyak step;
    * "prox_linear_abs", |f + <g, x - p>| for the loss |c| with value c, signed, and its gradient: s = c / G, clipped
      to [-lr, lr];
    * "prox_linear_hinge", the same for the loss max(c, 0): clipped to [0, lr];
    * "prox_point_least_squares", the loss itself where it is r^2 / 2 with r linear in x: s = lr / (1 + lr G / (2 f)).

    Args:
      learning_rate: lr, >= 0: how far the model is trusted.
      model: which of them.
      f_min: truncated: a lower bound of each sample's loss.

    Returns:
      The optimizer, without slots; `update(grads, state, params, value=loss)`.

    Raises:
      ValueError: a number out of its range, an unknown `model`; in `update`, `value` is missing.
    """
    choice("model", model, Model)
    uses_value = model != "linear"

    def sums(g: Array, s: StochasticModelState, h: Any) -> dict[str, Array]:
        return {"square": jnp.sum(abs_sq(g))}

    def step(h: Any, s: StochasticModelState) -> dict[str, Array]:
        if not uses_value:
            return {"size": jnp.asarray(h.learning_rate)}
        usable = jnp.isfinite(h.value) & jnp.isfinite(h.square)
        return {"size": jnp.where(usable, _size(model, h), 0.0)}

    @leafwise(
        StochasticModelState,
        hyper={"learning_rate": learning_rate, "f_min": f_min},
        needs=("value",) if uses_value else (),
        sums=sums if uses_value else None,
        step=step,
    )
    def rule(g: Array, s: StochasticModelState, h: Any) -> tuple[Array, StochasticModelState]:
        return jnp.where(h.size == 0, 0, -h.size * g), s

    return rule


def _size(model: Model, h: Any) -> Array:
    f, lr = h.value, h.learning_rate
    if model == "prox_point_least_squares":
        return jnp.where(f > 0, lr / (1 + lr * h.square / jnp.where(f > 0, 2 * f, 1.0)), 0.0)
    to_zero = (f - h.f_min if model == "truncated" else f) / jnp.where(h.square > 0, h.square, jnp.inf)
    return jnp.clip(to_zero, -lr if model == "prox_linear_abs" else 0.0, lr)


PAPER = register(
    Paper(
        name="stochastic_model",
        title="Stochastic model-based minimization of weakly convex functions",
        authors=("Davis, Damek", "Drusvyatskiy, Dmitriy"),
        year=2018,
        arxiv="1803.06523",
        make=stochastic_model,
        states=(StochasticModelState,),
        needs=("value",),
        elementwise=False,
        relative_learning_rate=700.0,
    )
)
