"""Adam with model exponential moving average is effective for nonconvex optimization.

Kwangjun Ahn, Ashok Cutkosky, 2024, arXiv:2405.18199: theory for the exponential moving average of the parameters
that practice keeps beside any optimizer. Power-law decays: arXiv:2312.02696; why the average beats the last iterate
of SGD on least squares: arXiv:2502.14123; warm-up decays: the ema-pytorch package.
The average is evaluated, never trained.

Differs from the authors' code: there is none; `init="first"` is `torch.optim.swa_utils`, `start` and `update_every`
are ema-pytorch's. That package's `KarrasEMA` uses the power-law decay one step later.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, averaging, evaluate, steps
from optax_zoo._core.hyper import (
    Decay,
    Scalar,
    ScalarOrSchedule,
    StepSchedule,
    choice,
    number,
    scalar_dtype,
    split_decay,
)
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy, wide_zeros
from optax_zoo._core.trees import PyTree

Init = Literal["params", "first", "zeros"]


class EmaState(NamedTuple):
    """The average and the state of the optimizer it watches."""

    count: Array  # steps taken
    weight: Array | None  # 1 - product of decays
    ema: PerParameter  # averaged parameters
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "ema"

    def eval_params(self, params: PyTree) -> PyTree:
        """The average, divided by its weight if debiased; `params` before the first step then."""
        if self.weight is None:
            return self.ema
        return evaluate(
            lambda e, p, h: jnp.where(h.weight > 0, e / jnp.where(h.weight > 0, h.weight, 1), p),
            self.ema,
            params,
            weight=self.weight,
        )


@method
def with_ema(
    inner: optax.GradientTransformation,
    decay: ScalarOrSchedule = 0.999,
    *,
    init: Init = "params",
    debias: bool = False,
    update_every: ScalarOrSchedule = 1,
    start: ScalarOrSchedule = 0,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential moving average of the parameters that `inner` trains: e <- decay e + (1 - decay) p.

    Read it with `optax_zoo.eval_params(opt_state, params)`. Batch statistics belong to the weights they were
    measured at: recompute them before evaluating the average.

    Args:
      inner: the optimizer; its updates pass through unchanged.
      decay: in [0, 1]; a number, a schedule of the 0-based step, or a decay of t = 1, 2, ... such as
        `power_ema_decay(6.94)`.
      init: the average starts at the initial parameters ("params"), at those after the first step ("first"), or
        at 0 ("zeros").
      debias: divides the average that starts at 0 by the sum of its weights.
      update_every: averages at steps t with (t - 1) % update_every == 0 only.
      start: while t - 1 <= start, and start > 0, the average is a copy of the parameters instead.
      accumulator_dtype: dtype of the average, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: a number out of its range, an unknown `init`, or `debias` without `init="zeros"`; in `update`,
        params are missing.
    """
    choice("init", init, Init)
    if debias and init != "zeros":
        raise ValueError(f'with_ema: debias needs init="zeros", got init={init!r}')

    def step(h: Any, s: EmaState) -> dict[str, Any]:
        every, first = map(steps, (h.update_every, h.start))
        copies = (first > 0) & (h.count <= first)
        if init == "first":
            copies |= h.count == 0
        take = jnp.where(copies, 1.0, split_decay(h.decay).take)
        take = jnp.where(h.count % every == 0, take, 0.0)
        return {"take": take} | ({"weight": approach(s.weight, 1.0, take)} if debias else {})

    @averaging(
        inner,
        EmaState,
        hyper={"decay": decay, "update_every": update_every, "start": start},
        step=step,
        weight=0.0 if debias else None,
        ema=at_least(wide_zeros() if init == "zeros" else copy(), accumulator_dtype),
    )
    def rule(p: Array, s: EmaState, h: Any) -> EmaState:
        return s._replace(ema=approach(s.ema, p, h.take))

    return rule


@method
def power_ema_decay(gamma: Scalar) -> StepSchedule:
    """(1 - 1/t)^(gamma + 1): weights grow like t^gamma, whatever the length of the run (arXiv:2312.02696).

    Args:
      gamma: > -1; 0 is the uniform mean. `power_ema_gamma` gives it from a relative width.
    """
    power = number("gamma", gamma, "(-1, inf)") + 1.0
    return _decay(f"power_ema_decay({gamma})", lambda t: -jnp.expm1(power * jnp.log1p(-1.0 / t)))


@method
def power_ema_gamma(sigma_rel: float) -> float:
    """The gamma of `power_ema_decay` whose weights have the standard deviation sigma_rel * t (arXiv:2312.02696).

    Args:
      sigma_rel: in (0, 0.3]; 0.05 and 0.1 are usual.
    """
    s = float(number("sigma_rel", sigma_rel, "(0, 0.3]")) ** -2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


@method
def warmup_ema_decay(max_decay: Scalar) -> StepSchedule:
    """min(max_decay, (1 + t) / (10 + t))."""
    least = 1.0 - number("max_decay", max_decay, "[0, 1]")
    return _decay(f"warmup_ema_decay({max_decay})", lambda t: jnp.maximum(least, 9.0 / (10.0 + t)))


@method
def inverse_power_ema_decay(
    max_decay: Scalar, inv_gamma: Scalar = 1, power: Scalar = 2 / 3, min_value: Scalar = 0, start: Scalar = 0
) -> StepSchedule:
    """1 - (1 + e / inv_gamma)^-power with e = t - 1 - start, within [min_value, max_decay]; 0 up to e = 0.

    Args:
      max_decay: in [0, 1].
      inv_gamma: > 0; steps after which the decay begins to grow.
      power: >= 0; 2/3 for runs of a million steps, 3/4 for shorter ones.
      min_value: in [0, 1].
      start: steps with decay 0 before.
    """
    least, most = (
        1.0 - number(name, value, "[0, 1]") for name, value in (("max_decay", max_decay), ("min_value", min_value))
    )
    scale, exponent = number("inv_gamma", inv_gamma, "(0, inf)"), number("power", power, "[0, inf)")
    skipped = number("start", start, "[0, inf)")

    def take(t: Array) -> Array:
        e = jnp.maximum(t - 1.0 - skipped, 0.0)
        grown = jnp.clip(jnp.exp(-exponent * jnp.log1p(e / scale)), least, most)
        return jnp.where(e == 0, 1.0, grown)

    text = f"inverse_power_ema_decay({max_decay}, {inv_gamma}, {power}, {min_value}, {start})"
    return _decay(text, take)


def _decay(text: str, take: Callable[[Array], Array]) -> StepSchedule:
    """A decay of t = 1, 2, ... from its complement."""

    def at(t: Any) -> Decay:
        taken = take(jnp.maximum(jnp.asarray(t, scalar_dtype()), 1.0))
        return Decay(1.0 - taken, taken)

    return StepSchedule(lambda t: at(t).keep, text, exact=at)


PAPER = register(
    Paper(
        name="with_ema",
        title="Adam with model exponential moving average is effective for nonconvex optimization",
        authors=("Ahn, Kwangjun", "Cutkosky, Ashok"),
        year=2024,
        arxiv="2405.18199",
        make=with_ema,
        kind="wrapper",
        states=(EmaState,),
        needs=("params",),
        floats_per_parameter=1,
        example={"decay": warmup_ema_decay(0.999)},
        scaled=lambda steps: {},
        races_by_default=True,
        golden=("ema.constant", "ema.debiased", "ema.first", "ema.power"),
    )
)
