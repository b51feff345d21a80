"""The Road Less Scheduled.

Aaron Defazio, Xingyu Alice Yang, Harsh Mehta, Konstantin Mishchenko, Ahmed Khaled, Ashok Cutkosky, 2024,
arXiv:2405.15682, Algorithm 1.
Gradients are taken at y, between the base iterate z and its running average x; evaluating x replaces the decay of
the learning rate. The parameters being trained are y, the state holds z, and x = (y - (1 - b1) z) / b1 is what
`optax_zoo.eval_params` returns: never evaluate or export y.

Differs from the authors' code: nothing. `bias_correction="paper"` is their `adamw_schedulefree_paper.py`.
`optax.contrib.schedule_free` differs with a warm-up only, which it lags by one step.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import evaluate, wrapping
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, abs_sq, choice, debias, ema, is_zero
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.rectify import rectification
from optax_zoo._core.slots import PerParameter, copy, squares, zeros
from optax_zoo._core.trees import PyTree

BiasCorrection = Literal["adam", "paper"]

_RANGES = {"b1": "(0, 1)", "r": "[0, inf)", "weight_lr_power": "[0, inf)", "inner_momentum": "[0, 1)"}


class ScheduleFreeState(NamedTuple):
    """State of every schedule-free optimizer; the parameters are y."""

    count: Array  # steps taken
    weight_sum: Array  # of the average
    lr_max: Array  # largest rate so far
    b1: Array  # share of x in y
    z: PerParameter  # base iterate
    nu: PerParameter = None  # second moment
    m: PerParameter = None  # inner momentum
    inner_state: Any = None  # of the wrapped optimizer

    AVERAGED = "z"

    def eval_params(self, params: PyTree) -> PyTree:
        """x, from y = `params` and z."""
        return evaluate(lambda z, y, h: (y - (1.0 - h.b1) * z) / h.b1, self.z, params, b1=self.b1)


def _average(h: Any, s: ScheduleFreeState, lr: Scalar) -> dict[str, Any]:
    """The step's weights: with c = w / sum of w, y moves by `pull` * (z - y) - `push` * lr * d after z has moved.

    For constant b1, pull = c and push = (1 - c)(1 - b1). The stored b1 is the one y was made with.
    """
    lr_max = jnp.maximum(s.lr_max, lr)
    w = h.t**h.r * lr_max**h.weight_lr_power
    weight_sum = s.weight_sum + w
    c = jnp.where(weight_sum > 0, w / jnp.where(weight_sum > 0, weight_sum, 1.0), 0.0)
    b1 = jnp.asarray(h.b1, s.b1.dtype)
    pull = c + (1.0 - c) * (s.b1 - b1) / s.b1
    push = (1.0 - pull) * (1.0 - s.b1)
    return {"weight_sum": weight_sum, "lr_max": lr_max, "b1": b1, "pull": pull, "push": push, "lr": lr}


def _move(y: Array, s: ScheduleFreeState, h: Any, d: Array, d_again: Array) -> tuple[Array, ScheduleFreeState]:
    """Moves z by -lr * d and y after it; `d_again` is d written differently, see `_normalized`."""
    z = s.z - h.lr * d
    return h.pull * (z - y) - h.push * h.lr * d_again, s._replace(z=z)


def _normalized(n: Array, nu: Array, h: Any, scale: float) -> Array:
    """n / (sqrt(nu / bias2) + eps), for any `scale`.

    A power of two changes no bit, yet hides from XLA that a quotient occurs twice, which it would keep in memory.
    """
    return scale * n / (jnp.sqrt((scale * scale / h.bias2) * nu) + scale * h.eps)


def _warm(h: Any) -> Array:
    """min(t / warmup_steps, 1), or 1 without warm-up."""
    steps = jnp.asarray(h.warmup_steps, h.t.dtype)
    return jnp.where(steps > 0, jnp.minimum(h.t / jnp.maximum(steps, 1.0), 1.0), 1.0)


def _slots(state_dtype: DTypeLike | None) -> dict[str, Any]:
    return {"weight_sum": 0.0, "lr_max": 0.0, "b1": 1.0, "z": copy(state_dtype)}


@method
def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    b1: ScalarOrSchedule = 0.9,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    warmup_steps: ScalarOrSchedule = 0,
    r: ScalarOrSchedule = 0.0,
    weight_lr_power: ScalarOrSchedule = 2.0,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free SGD (arXiv:2405.15682, Algorithm 1).

    Args:
      learning_rate: step size, >= 0, 10 to 50 times that of SGD with momentum; no decaying schedule.
      b1: share of the average in the point where gradients are taken, in (0, 1); 0.95 to 0.98 for long runs.
      weight_decay: L2 penalty, at y.
      warmup_steps: steps over which the rate rises linearly; 0: none.
      r: the average weighs step t with t**r, >= 0.
      weight_lr_power: and with the largest rate so far to this power, >= 0.
      state_dtype: dtype of z; None: float32 or better, because x amplifies its rounding by 1 / b1.

    Returns:
      The optimizer; its update must not be rescaled afterwards. One number of state per parameter.

    Raises:
      ValueError: a number out of its range.
    """

    def step(h: Any, s: ScheduleFreeState) -> Mapping[str, Any]:
        return _average(h, s, h.learning_rate * _warm(h))

    hyper = {"learning_rate": learning_rate, "b1": b1, "weight_decay": weight_decay}
    hyper |= {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}

    @leafwise(ScheduleFreeState, hyper=hyper, ranges=_RANGES, step=step, **_slots(state_dtype))
    def rule(g: Array, s: ScheduleFreeState, h: Any, p: Array) -> tuple[Array, ScheduleFreeState]:
        d = g + h.weight_decay * p
        return _move(p, s, h, d, d)

    return rule


@method
def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    warmup_steps: ScalarOrSchedule = 0,
    r: ScalarOrSchedule = 0.0,
    weight_lr_power: ScalarOrSchedule = 2.0,
    inner_momentum: ScalarOrSchedule = 0.0,
    bias_correction: BiasCorrection = "adam",
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free AdamW (arXiv:2405.15682).

    Args:
      learning_rate: step size, >= 0, 1 to 10 times that of AdamW; no decaying schedule.
      b1: share of the average in the point where gradients are taken, in (0, 1); 0.95 to 0.98 for long runs.
      b2: decay of the second moment, in [0, 1).
      eps: added to the root.
      weight_decay: decoupled decay at y, multiplied by the learning rate.
      warmup_steps: steps over which the rate rises linearly; 0: none.
      r: the average weighs step t with t**r, >= 0.
      weight_lr_power: and with the largest rate so far to this power, >= 0.
      inner_momentum: decay of an EMA of the gradients, in [0, 1); a Python 0 keeps no EMA.
      bias_correction: "adam" divides the second moment by 1 - b2**t; "paper", used for the paper's experiments,
        multiplies the rate by sqrt(1 - b2**t) instead.
      state_dtype: dtype of z; None: float32 or better, because x amplifies its rounding by 1 / b1.

    Returns:
      The optimizer; its update must not be rescaled afterwards. Two numbers of state per parameter, three with
      inner momentum.

    Raises:
      ValueError: a number out of its range, or an unknown `bias_correction`.
    """
    choice("bias_correction", bias_correction, BiasCorrection)
    has_momentum = not is_zero(inner_momentum)

    def step(h: Any, s: ScheduleFreeState) -> Mapping[str, Any]:
        bias1, bias2 = debias(h.inner_momentum, h.t), debias(h.b2, h.t)
        lr = h.learning_rate * _warm(h)
        if bias_correction == "paper":
            lr, bias2 = lr * jnp.sqrt(bias2), 1.0
        return {**_average(h, s, lr), "bias1": bias1, "bias2": bias2}

    hyper = {"learning_rate": learning_rate, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    hyper |= {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
    hyper |= {"inner_momentum": inner_momentum}

    @leafwise(
        ScheduleFreeState,
        hyper=hyper,
        ranges=_RANGES,
        step=step,
        **_slots(state_dtype),
        nu=squares(),
        m=zeros() if has_momentum else None,
    )
    def rule(g: Array, s: ScheduleFreeState, h: Any, p: Array) -> tuple[Array, ScheduleFreeState]:
        nu = ema(s.nu, abs_sq(g), h.b2)
        m = ema(s.m, g, h.inner_momentum) if has_momentum else None
        n = m / h.bias1 if has_momentum else g
        d, d_again = (_normalized(n, nu, h, scale) + h.weight_decay * p for scale in (1.0, 2.0))
        return _move(p, s._replace(nu=nu, m=m), h, d, d_again)

    return rule


@method
def schedule_free_radam(
    learning_rate: ScalarOrSchedule = 0.0025,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    r: ScalarOrSchedule = 0.0,
    weight_lr_power: ScalarOrSchedule = 2.0,
    silent_sgd_phase: bool = True,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free RAdam, whose rectification of the first steps stands in for a warm-up (arXiv:2405.15682).

    Args:
      learning_rate: step size, >= 0; no decaying schedule.
      b1: share of the average in the point where gradients are taken, in (0, 1); 0.95 to 0.98 for long runs.
      b2: decay of the second moment, in [0, 1).
      eps: added to the root.
      weight_decay: decoupled decay at y, multiplied by the learning rate.
      r: the average weighs step t with t**r, >= 0.
      weight_lr_power: and with the largest rate so far to this power, >= 0.
      silent_sgd_phase: whether nothing moves while the second moment is unreliable (4 steps at b2 = 0.999);
        otherwise these are steps of SGD at the full rate.
      state_dtype: dtype of z; None: float32 or better, because x amplifies its rounding by 1 / b1.

    Returns:
      The optimizer; its update must not be rescaled afterwards. Two numbers of state per parameter.

    Raises:
      ValueError: a number out of its range.
    """

    def step(h: Any, s: ScheduleFreeState) -> Mapping[str, Any]:
        rect, reliable = rectification(h.b2, h.t)
        lr = h.learning_rate * jnp.where(reliable, rect, float(not silent_sgd_phase))
        return {**_average(h, s, lr), "bias2": debias(h.b2, h.t), "reliable": reliable}

    hyper = {"learning_rate": learning_rate, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    hyper |= {"r": r, "weight_lr_power": weight_lr_power}

    @leafwise(ScheduleFreeState, hyper=hyper, ranges=_RANGES, step=step, **_slots(state_dtype), nu=squares(), m=None)
    def rule(g: Array, s: ScheduleFreeState, h: Any, p: Array) -> tuple[Array, ScheduleFreeState]:
        nu = ema(s.nu, abs_sq(g), h.b2)
        d, d_again = (
            jnp.where(h.reliable, _normalized(g, nu, h, scale), g) + h.weight_decay * p for scale in (1.0, 2.0)
        )
        return _move(p, s._replace(nu=nu), h, d, d_again)

    return rule


@method
def schedule_free(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    *,
    r: ScalarOrSchedule = 0.0,
    weight_lr_power: ScalarOrSchedule = 2.0,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes any optimizer schedule-free (arXiv:2405.15682): z follows `inner`, gradients are taken at y.

    Args:
      inner: a complete optimizer with its own learning rate, without momentum and without a decaying schedule.
      learning_rate: the rate of `inner`, by which the average weighs its steps; it moves nothing itself.
      b1: share of the average in the point where gradients are taken, in (0, 1).
      r: the average weighs step t with t**r, >= 0.
      weight_lr_power: and with the largest rate so far to this power, >= 0.
      state_dtype: dtype of z; None: float32 or better, because x amplifies its rounding by 1 / b1.

    Returns:
      The optimizer; its update must not be rescaled afterwards. One more number of state per parameter.

    Raises:
      ValueError: a number out of its range; in `update`, params are missing.
    """

    def step(h: Any, s: ScheduleFreeState) -> Mapping[str, Any]:
        return {**_average(h, s, h.learning_rate), "lr": -1.0}

    hyper = {"learning_rate": learning_rate, "b1": b1, "r": r, "weight_lr_power": weight_lr_power}

    @leafwise(ScheduleFreeState, hyper=hyper, ranges=_RANGES, step=step, **_slots(state_dtype))
    def follow(u: Array, s: ScheduleFreeState, h: Any, p: Array) -> tuple[Array, ScheduleFreeState]:
        return _move(p, s, h, u, u)

    return wrapping(inner, follow.init, follow.update)


_PAPER: dict[str, Any] = {
    "title": "The Road Less Scheduled",
    "authors": (
        "Defazio, Aaron",
        "Yang, Xingyu Alice",
        "Mehta, Harsh",
        "Mishchenko, Konstantin",
        "Khaled, Ahmed",
        "Cutkosky, Ashok",
    ),
    "year": 2024,
    "arxiv": "2405.15682",
    "algorithm": "Algorithm 1",
    "states": (ScheduleFreeState,),
    "needs": ("params",),
}

PAPERS = (
    register(
        Paper(
            name="schedule_free_sgd",
            make=schedule_free_sgd,
            floats_per_parameter=1,
            relative_learning_rate=200.0,
            races_by_default=True,
            golden=("schedule_free_sgd.default", "schedule_free_sgd.warmup_wd"),
            **_PAPER,
        )
    ),
    register(
        Paper(
            name="schedule_free_adamw",
            make=schedule_free_adamw,
            floats_per_parameter=2,
            relative_learning_rate=2.5,
            races_by_default=True,
            golden=("schedule_free_adamw.default", "schedule_free_adamw.warmup_wd"),
            **_PAPER,
        )
    ),
    register(
        Paper(
            name="schedule_free_radam",
            make=schedule_free_radam,
            floats_per_parameter=2,
            relative_learning_rate=2.5,
            golden=("schedule_free_radam.default", "schedule_free_radam.loud"),
            **_PAPER,
        )
    ),
    register(
        Paper(
            name="schedule_free",
            make=schedule_free,
            kind="wrapper",
            floats_per_parameter=1,
            base=lambda learning_rate: optax.adamw(learning_rate, b1=0.0),
            example={"learning_rate": 1e-3},
            **_PAPER,
        )
    ),
)
