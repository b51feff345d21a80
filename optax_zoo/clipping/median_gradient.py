"""SGD with Clipping is Secretly Estimating the Median Gradient.

Fabian Schaipp, Guillaume Garrigos, Umut Simsekli, Robert M. Gower, 2024, arXiv:2402.12828; its second version is
called "Tracking the Median of Gradients with a Stochastic Proximal Point Method".
Follows the median of the stream of gradients by one proximal step on each, which no single gradient can move far.
Plain clipping is the same step taken from 0 each time.

Differs from the authors' code: none was found. The closed forms are derived from the proximal step; UNVERIFIED that
the paper starts the estimate at 0. A gradient whose distance to the estimate is not finite is skipped.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, choice
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, wide_zeros

Norm = Literal["l2", "l1", "huber", "mean"]
NormOfSpp = Literal["l2", "l1", "huber", "sq_l2"]
Init = Literal["zero", "first"]


class MedianGradientState(NamedTuple):
    """The running estimate."""

    count: Array  # steps taken
    m: PerParameter  # estimated median


@method
def median_gradient(
    tau: ScalarOrSchedule, norm: Norm = "l2", mu: ScalarOrSchedule = 1.0, init: Init = "zero"
) -> optax.GradientTransformationExtraArgs:
    """The median of the gradients so far, by stochastic proximal point steps (arXiv:2402.12828).

    Each step sets m to the minimiser of loss(m' - g) + |m' - m|^2 / (2 tau) over m'. With d = g - m:

    * "l2", loss |r|, the geometric median: m + min(1, tau / |d|) d, |d| over the whole tree;
    * "l1", loss sum |r_i|, the median of each coordinate: m + clip(d, -tau, tau);
    * "huber", loss |r|^2 / (2 mu) up to |r| = mu and |r| - mu / 2 beyond: m + tau / max(|d|, tau + mu) d;
    * "mean", loss |r|^2 / 2, an EMA: m + tau / (1 + tau) d.

    Follow it with `optax.scale_by_learning_rate`.

    Args:
      tau: longest step, > 0, in units of the gradient ("mean": a pure number); about the usual |d| for "l2".
      norm: the loss.
      mu: huber: where the quadratic ends, >= 0, in units of the gradient.
      init: the estimate starts at 0 ("zero") or at the first gradient ("first").

    Returns:
      A transformation with one number of state per parameter.

    Raises:
      ValueError: a number out of its range, an unknown `norm` or `init`.
      TypeError: complex leaves with "l1", which orders real numbers.
    """
    choice("norm", norm, Norm)
    return _median(tau, norm, mu, init)


@method
def scale_by_median_spp(
    tau: ScalarOrSchedule, norm: NormOfSpp = "l2", mu: ScalarOrSchedule | None = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `median_spp`; arguments as there."""
    choice("norm", norm, NormOfSpp)
    if norm == "huber" and mu is None:
        raise ValueError(f"{speaker()}: norm='huber' needs mu")
    return _median(tau, "mean" if norm == "sq_l2" else norm, 0.0 if mu is None else mu, "zero")


@method
def median_spp(
    learning_rate: ScalarOrSchedule, tau: ScalarOrSchedule, norm: NormOfSpp = "l2", mu: ScalarOrSchedule | None = None
) -> optax.GradientTransformationExtraArgs:
    """SGD on the running median of the gradients (arXiv:2402.12828).

    Args:
      learning_rate: step size, >= 0.
      tau: longest step of the estimate, > 0; see `median_gradient`.
      norm: "l2", "l1" or "huber" as in `median_gradient`; "sq_l2" is its "mean".
      mu: huber: where the quadratic ends, >= 0; required there.

    Returns:
      The optimizer; one number of state per parameter.

    Raises:
      ValueError: a number out of its range, an unknown `norm`, "huber" without `mu`.
      TypeError: complex leaves with "l1".
    """
    return finish(scale_by_median_spp(tau, norm, mu), learning_rate)


def _median(
    tau: ScalarOrSchedule, norm: Norm, mu: ScalarOrSchedule, init: Init
) -> optax.GradientTransformationExtraArgs:
    choice("init", init, Init)
    over_tree = norm in ("l2", "huber")

    def sums(g: Array, s: MedianGradientState, h: Any) -> dict[str, Array]:
        return {"square": jnp.sum(abs_sq(g - s.m))}

    def step(h: Any, s: MedianGradientState) -> dict[str, Any]:
        if not over_tree:
            return {"share": h.tau / (1 + h.tau)}
        square = getattr(h, "square", jnp.zeros(()))
        reach = h.tau + h.mu if norm == "huber" else h.tau
        return {"share": h.tau / jnp.maximum(jnp.sqrt(square), reach), "usable": jnp.isfinite(square)}

    @leafwise(
        MedianGradientState,
        hyper={"tau": tau, "mu": mu},
        ranges={"tau": "(0, inf)", "mu": "[0, inf)"},
        real_only=norm == "l1",
        sums=sums if over_tree else None,
        step=step,
        m=wide_zeros(),
    )
    def rule(g: Array, s: MedianGradientState, h: Any) -> tuple[Array, MedianGradientState]:
        if norm == "l1":
            d = g - s.m
            reach = jnp.where(h.count == 0, jnp.inf, h.tau) if init == "first" else h.tau
            m = s.m + jnp.where(jnp.isnan(d), 0, jnp.clip(d, -reach, reach))
        else:
            share = jnp.where(h.count == 0, 1.0, h.share) if init == "first" else h.share
            usable = h.usable if over_tree else jnp.isfinite(g)
            m = jnp.where(usable, 1 - share, 1) * s.m + jnp.where(usable, share * g, 0)
        return m, s._replace(m=m)

    return rule


PAPER = register(
    Paper(
        name="median_spp",
        title="SGD with Clipping is Secretly Estimating the Median Gradient",
        authors=("Schaipp, Fabian", "Garrigos, Guillaume", "Simsekli, Umut", "Gower, Robert M."),
        year=2024,
        arxiv="2402.12828",
        make=median_spp,
        transform=scale_by_median_spp,
        states=(MedianGradientState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=100.0,
        example={"tau": 1.0},
        golden=("median_spp.l2", "median_spp.l1", "median_spp.huber"),
    )
)
MEDIAN_GRADIENT = register(
    dataclasses.replace(
        PAPER,
        name="median_gradient",
        kind="transform",
        make=median_gradient,
        transform=None,
        base=optax.sgd,
        example={"tau": 1.0},
        probe={"tau": 5.0, "norm": "huber"},
        golden=(),
    )
)
