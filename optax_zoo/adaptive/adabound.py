"""Adaptive Gradient Methods with Dynamic Bound of Learning Rate: AdaBound and AMSBound.

Liangchen Luo, Yuanhao Xiong, Yan Liu, Xu Sun, 2019, arXiv:1902.09843, Algorithms 2 and 3.
Adam whose step sizes are clipped to bounds that close on the rate of SGD as training goes on.

Differs from the authors' code: nothing. The paper's box has neither bias correction nor eps, an extra 1/sqrt(t)
after the clip, and 1-b2 in the place of gamma.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, abs_sq, check_range, debias, ema, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros


class AdaboundState(NamedTuple):
    """Adam's moments."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerParameter  # second moment
    v_max: PerParameter  # its maximum (amsbound)


@method
def scale_by_adabound(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    final_lr_ratio: ScalarOrSchedule = 100.0,
    gamma: ScalarOrSchedule = 1e-3,
    eps: ScalarOrSchedule = 1e-8,
    amsbound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The AdaBound direction; `final_lr_ratio` is final_lr / base learning rate, the rest as in `adabound`."""

    def step(h: Any, s: AdaboundState) -> dict[str, Array]:
        return {
            "gain": jnp.sqrt(debias(h.b2, h.t)) / debias(h.b1, h.t),
            "low": h.final_lr_ratio * (1 - 1 / (h.gamma * h.t + 1)),
            "high": h.final_lr_ratio * (1 + 1 / (h.gamma * h.t)),
        }

    @leafwise(
        AdaboundState,
        hyper={"b1": b1, "b2": b2, "final_lr_ratio": final_lr_ratio, "gamma": gamma, "eps": eps},
        ranges={"final_lr_ratio": "(0, inf)", "gamma": "(0, inf)"},
        step=step,
        m=zeros(),
        v=squares(),
        v_max=squares() if amsbound else None,
    )
    def rule(g: Array, s: AdaboundState, h: Any) -> tuple[Array, AdaboundState]:
        m = ema(s.m, g, h.b1)
        v = ema(s.v, abs_sq(g), h.b2)
        largest = jnp.maximum(s.v_max, v) if amsbound else v
        rate = h.gain / (jnp.sqrt(largest) + h.eps)
        return jnp.clip(rate, h.low, h.high) * m, s._replace(m=m, v=v, v_max=largest)

    return rule


@method
def adabound(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    final_lr: ScalarOrSchedule = 0.1,
    gamma: ScalarOrSchedule = 1e-3,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decouple: bool = False,
    amsbound: bool = False,
    base_learning_rate: Scalar | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaBound (arXiv:1902.09843, Algorithm 2), or AMSBound (Algorithm 3) with `amsbound`.

    Args:
      learning_rate: step size, > 0; a schedule shrinks `final_lr` in proportion.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      final_lr: SGD's rate that the bounds close on, > 0.
      gamma: speed at which the bounds close, > 0.
      eps: added to the uncorrected root.
      weight_decay: decay coefficient, added to the gradient.
      weight_decouple: decay the weights directly, not multiplied by the learning rate.
      amsbound: use the running maximum of the second moment.
      base_learning_rate: the rate that belongs to `final_lr`; None: the learning rate, of a schedule that at count 0.
        With a warm-up, or a schedule inside `optax.inject_hyperparams`, pass the peak rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; two numbers of state per parameter, three with `amsbound`.

    Raises:
      ValueError: a number out of its range, or a schedule that starts at 0 without `base_learning_rate`.
    """
    ratio = _final_lr_ratio(final_lr, learning_rate, base_learning_rate)
    direction = scale_by_adabound(b1, b2, ratio, gamma, eps, amsbound)
    return finish(direction, learning_rate, weight_decay, mask, decay="fixed" if weight_decouple else "l2")


@method
def amsbound(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    final_lr: ScalarOrSchedule = 0.1,
    gamma: ScalarOrSchedule = 1e-3,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decouple: bool = False,
    base_learning_rate: Scalar | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AMSBound (arXiv:1902.09843, Algorithm 3): `adabound` with `amsbound=True`, arguments as there."""
    rest = {"base_learning_rate": base_learning_rate, "mask": mask}
    return adabound(learning_rate, b1, b2, final_lr, gamma, eps, weight_decay, weight_decouple, amsbound=True, **rest)


def _final_lr_ratio(
    final_lr: ScalarOrSchedule, learning_rate: ScalarOrSchedule, base_learning_rate: Scalar | None
) -> ScalarOrSchedule:
    check_range("final_lr", final_lr, "(0, inf)")
    check_range("learning_rate", learning_rate, "(0, inf)")
    first = learning_rate(0) if callable(learning_rate) else learning_rate
    base = number("base_learning_rate", first if base_learning_rate is None else base_learning_rate, "(0, inf)")
    if callable(final_lr):
        return lambda count: final_lr(count) / base
    return final_lr / base


PAPER = register(
    Paper(
        name="adabound",
        title="Adaptive Gradient Methods with Dynamic Bound of Learning Rate",
        authors=("Luo, Liangchen", "Xiong, Yuanhao", "Liu, Yan", "Sun, Xu"),
        year=2019,
        arxiv="1902.09843",
        algorithm="Algorithm 2",
        make=adabound,
        transform=scale_by_adabound,
        states=(AdaboundState,),
        floats_per_parameter=2,
        relative_learning_rate=4.0,
        peak_argument="base_learning_rate",
        races_by_default=True,
        golden=("adabound.default", "adabound.wd"),
    )
)
AMSBOUND = register(
    dataclasses.replace(
        PAPER,
        name="amsbound",
        algorithm="Algorithm 3",
        make=amsbound,
        transform=None,
        floats_per_parameter=3,
        races_by_default=False,
        golden=("amsbound.default",),
    )
)
