"""The Optimiser Hidden in Plain Sight: Training with the Loss Landscape's Induced Metric.

Thomas R. Harvey, 2025, arXiv:2509.03594.
Gradient descent in the metric of the loss's own graph, I + xi g g^T, whose inverse times g is g / (1 + xi |g|^2): one
scalar for the whole tree that shortens steps where the loss is steep. The variants take the graph of the loss's
logarithm, or start from a diagonal metric of mean squares.

Differs from the authors' code: a step whose loss or squared norm is not finite moves nothing and changes nothing but
the count, where theirs would keep the NaN in the average for good. UNVERIFIED: the equations as printed in the paper;
these are the code's.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, choice, debias, ema
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros

Variant = Literal["standard", "log", "rms"]


class InducedMetricState(NamedTuple):
    """Two averages, and with "rms" a third."""

    count: Array  # steps taken
    steepness: Array  # averaged squared norm
    buf: PerParameter  # averaged gradient
    r: PerParameter  # mean squares (rms)


@method
def scale_by_induced_metric(
    momentum: ScalarOrSchedule = 0.9,
    xi: ScalarOrSchedule = 0.1,
    beta: ScalarOrSchedule = 0.8,
    variant: Variant = "standard",
    beta_rms: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """The induced-metric direction; arguments as in `induced_metric`."""
    choice("variant", variant, Variant)
    rms, logarithmic = variant == "rms", variant == "log"

    def diagonal(g: Array, s: InducedMetricState, h: Any) -> tuple[Array, Array]:
        r = ema(s.r, abs_sq(g), h.beta_rms)
        d = jnp.sqrt(r / debias(h.beta_rms, h.t)) + h.eps
        return r, jnp.where(d > 0, d, jnp.inf)

    def sums(g: Array, s: InducedMetricState, h: Any) -> dict[str, Array]:
        return {"norm": jnp.sum(abs_sq(g) / diagonal(g, s, h)[1] if rms else abs_sq(g))}

    def step(h: Any, s: InducedMetricState) -> dict[str, Array]:
        usable = jnp.isfinite(h.norm)
        steepness = ema(s.steepness, h.xi * h.norm, h.beta)
        mean = steepness / debias(h.beta, h.t)
        c = 1 / (1 + jnp.abs(mean))
        if logarithmic:
            usable &= jnp.isfinite(h.value)
            square = h.value * h.value + mean
            c = h.value / jnp.where(square > 0, square, jnp.inf)
        gain = jnp.where(usable, c / debias(h.momentum, h.t), 0.0)
        return {"gain": gain, "usable": usable, "steepness": jnp.where(usable, steepness, s.steepness)}

    @leafwise(
        InducedMetricState,
        hyper={"momentum": momentum, "xi": xi, "beta": beta, "beta_rms": beta_rms, "eps": eps},
        ranges={"xi": "[0, inf)", "beta": "[0, 1)", "beta_rms": "[0, 1)"},
        needs=("value",) if logarithmic else (),
        sums=sums,
        step=step,
        steepness=0.0,
        buf=zeros(),
        r=squares() if rms else None,
    )
    def rule(g: Array, s: InducedMetricState, h: Any) -> tuple[Array, InducedMetricState]:
        buf = jnp.where(h.usable, ema(s.buf, g, h.momentum), s.buf)
        if not rms:
            return h.gain * buf, s._replace(buf=buf)
        r, d = diagonal(g, s, h)
        return h.gain * buf / jnp.where(h.usable, d, 1.0), s._replace(buf=buf, r=jnp.where(h.usable, r, s.r))

    return rule


@method
def induced_metric(
    learning_rate: ScalarOrSchedule = 0.1,
    momentum: ScalarOrSchedule = 0.9,
    xi: ScalarOrSchedule = 0.1,
    beta: ScalarOrSchedule = 0.8,
    variant: Variant = "standard",
    beta_rms: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descent in the metric that the loss's graph induces on the parameters (arXiv:2509.03594).

    With E the averaged xi |g|^2 over the whole tree, the averaged gradient is multiplied by

    * "standard": 1 / (1 + E);
    * "log": L / (L^2 + E), L the loss of this step, which must be positive and not near 0;
    * "rms": 1 / (1 + E) and divided by D = sqrt(mean square of g) + eps, with |g|^2 / D summed in E.

    Args:
      learning_rate: step size, >= 0.
      momentum: decay of the averaged gradient, in [0, 1), bias-corrected.
      xi: weight of the loss's direction in the metric, >= 0; 0 is flat space.
      beta: decay of the averaged squared norm, in [0, 1), bias-corrected.
      variant: "standard", "log" or "rms"; "log" needs the loss, `update(..., value=loss)`.
      beta_rms: rms: decay of the mean squares, in [0, 1), bias-corrected.
      eps: rms: added to the root.
      weight_decay: decoupled decay, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; one number of state per parameter, two with "rms".

    Raises:
      ValueError: a number out of its range, an unknown `variant`; in `update` with "log", `value` is missing.
    """
    direction = scale_by_induced_metric(momentum, xi, beta, variant, beta_rms, eps)
    return finish(direction, learning_rate, weight_decay, mask)


PAPER = register(
    Paper(
        name="induced_metric",
        title="The Optimiser Hidden in Plain Sight: Training with the Loss Landscape's Induced Metric",
        authors=("Harvey, Thomas R.",),
        year=2025,
        arxiv="2509.03594",
        make=induced_metric,
        transform=scale_by_induced_metric,
        states=(InducedMetricState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=100.0,
        golden=("induced_metric.default", "induced_metric.log", "induced_metric.rms"),
    )
)
