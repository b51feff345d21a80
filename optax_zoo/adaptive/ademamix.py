"""The AdEMAMix Optimizer: Better, Faster, Older.

Matteo Pagliardini, Pierre Ablin, David Grangier, 2024, arXiv:2409.03137, Algorithm 1.
Adam whose numerator mixes a fast EMA of the gradients with a very slow one, because gradients stay useful for
tens of thousands of steps; the weight alpha and the decay b3 of the slow one are warmed up.

Differs from the authors' code: nothing in their PyTorch file but alpha's default, 2 there and 5 in their JAX file
and here. (That JAX file evaluates both schedules one step earlier, and the 1e-8 in its half-life is 0.)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import (
    Decay,
    Scalar,
    ScalarOrSchedule,
    StepSchedule,
    abs_sq,
    debias,
    ema,
    log,
    number,
    scalar_dtype,
)
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, wide_zeros, zeros


class AdemamixState(NamedTuple):
    """Two averages of the gradient and its second moment."""

    count: Array  # steps taken
    m1: PerParameter  # fast EMA
    m2: PerParameter  # slow EMA
    nu: PerParameter  # second moment


@method
def scale_by_ademamix(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    alpha_warmup: int | None = None,
    b3_warmup: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The AdEMAMix direction; arguments as in `ademamix`."""
    if alpha_warmup is not None:
        alpha = ademamix_alpha_schedule(alpha, 0.0, alpha_warmup)
    if b3_warmup is not None:
        b3 = ademamix_b3_schedule(b3, number("b1", b1, "[0, 1)"), b3_warmup)

    def step(h: Any, s: AdemamixState) -> dict[str, Array]:
        return {"bias1": debias(h.b1, h.t), "bias2": debias(h.b2, h.t)}

    @leafwise(
        AdemamixState,
        hyper={"b1": b1, "b2": b2, "b3": b3, "alpha": alpha, "eps": eps, "eps_root": eps_root},
        ranges={"alpha": "[0, inf)"},
        step=step,
        m1=zeros(mu_dtype),
        m2=wide_zeros(mu_dtype),
        nu=squares(),
    )
    def rule(g: Array, s: AdemamixState, h: Any) -> tuple[Array, AdemamixState]:
        m1 = ema(s.m1, g, h.b1)
        m2 = ema(s.m2, g, h.b3)
        nu = ema(s.nu, abs_sq(g), h.b2)
        u = (m1 / h.bias1 + h.alpha * m2) / (jnp.sqrt(nu / h.bias2 + h.eps_root) + h.eps)
        return u, s._replace(m1=m1, m2=m2, nu=nu)

    return rule


@method
def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    alpha_warmup: int | None = None,
    b3_warmup: int | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix (arXiv:2409.03137, Algorithm 1).

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the fast EMA, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      b3: decay of the slow EMA, in [0, 1); not bias-corrected.
      alpha: weight of the slow EMA, >= 0.
      eps: added to the root.
      eps_root: added inside the root.
      mu_dtype: dtype of both EMAs; None: the parameters', and at least float32 for the slow one, to which a step
        adds less than bfloat16 can tell apart.
      alpha_warmup: steps over which alpha rises linearly from 0; None: constant.
      b3_warmup: steps over which the half-life of the slow EMA rises linearly from that of b1; None: constant.
      weight_decay: decoupled decay, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; three numbers of state per parameter.

    Raises:
      ValueError: a number out of its range.
    """
    direction = scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype, alpha_warmup, b3_warmup)
    return finish(direction, learning_rate, weight_decay, mask)


@method
def ademamix_alpha_schedule(alpha: ScalarOrSchedule, alpha_start: Scalar = 0.0, warmup: Scalar = 1) -> StepSchedule:
    """alpha_t, linear from `alpha_start` to `alpha` at step `warmup`, constant after it; t = 1, 2, ..."""
    end = number("alpha", alpha, "[0, inf)")
    start = number("alpha_start", alpha_start, "[0, inf)")
    steps = number("alpha_warmup", warmup, "[0, inf)")

    def at(t: Any) -> Array:
        t = jnp.asarray(t, scalar_dtype())
        return jnp.where(t < steps, (1 - t / steps) * start + t / steps * end, end)

    return StepSchedule(at, f"ademamix_alpha_schedule({alpha}, {alpha_start}, {warmup})")


@method
def ademamix_b3_schedule(
    b3: ScalarOrSchedule, b3_start: ScalarOrSchedule = 0.9, warmup: Scalar = 1, eps: Scalar = 1e-8
) -> StepSchedule:
    """b3_t, whose half-life is linear from that of `b3_start` to that of `b3` at step `warmup`; t = 1, 2, ...

    Args:
      b3: final decay, in [0, 1).
      b3_start: first decay, in [0, 1).
      warmup: steps.
      eps: added to a decay before its logarithm is taken; 0 is the paper's form, 1e-8 the authors' PyTorch code.
    """
    end, start = number("b3", b3, "[0, 1)"), number("b3_start", b3_start, "[0, 1)")
    steps, eps = number("b3_warmup", warmup, "[0, inf)"), number("eps", eps, "[0, inf)")

    def log_b3(t: Any) -> Array:
        t = jnp.asarray(t, scalar_dtype())
        inverse = (1 - t / steps) / log(start + eps) + t / steps / log(end + eps)
        return jnp.where(t < steps, 1 / inverse, log(end))

    return StepSchedule(
        lambda t: jnp.exp(log_b3(t)),
        f"ademamix_b3_schedule({b3}, {b3_start}, {warmup}, eps={eps})",
        exact=lambda t: Decay.from_log(log_b3(t)),
    )


PAPER = register(
    Paper(
        name="ademamix",
        title="The AdEMAMix Optimizer: Better, Faster, Older",
        authors=("Pagliardini, Matteo", "Ablin, Pierre", "Grangier, David"),
        year=2024,
        arxiv="2409.03137",
        algorithm="Algorithm 1",
        make=ademamix,
        transform=scale_by_ademamix,
        states=(AdemamixState,),
        floats_per_parameter=3,
        races_by_default=True,
        golden=("ademamix.default", "ademamix.schedules"),
    )
)
