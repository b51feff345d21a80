"""Rethinking Adam: A Twofold Exponential Moving Average Approach: AdaMomentum, later called AdaM3.

Yizhou Wang, Yue Kang, Can Qin, Huan Wang, Yi Xu, Yulun Zhang, Yun Fu, 2021, arXiv:2106.11514.
Adam that divides by the root mean square of its first moment in the place of the gradient's: what is averaged twice
is less noisy, and steps are larger where gradients agree less.

Differs from the authors' code: nothing. As there, eps accumulates in the second moment, the rectified rule alone adds
it to the root again, and it ignores `amsgrad`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, decoupling, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, debias, ema, split_decay
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.rectify import rectified, rectified_scalars
from optax_zoo._core.slots import PerParameter, squares, zeros


class AdamomentumState(NamedTuple):
    """The first moment and the second moment of the first."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerParameter  # its second moment
    v_max: PerParameter  # its maximum (amsgrad)


@method
def scale_by_adamomentum(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    amsgrad: bool = False,
    rectify: bool = False,
    degenerated_to_sgd: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The AdaMomentum direction; arguments as in `adamomentum`."""

    def step(h: Any, s: AdamomentumState) -> dict[str, Array]:
        if rectify:
            return rectified_scalars(h, degenerated_to_sgd)
        return {"gain": jnp.sqrt(debias(h.b2, h.t)) / debias(h.b1, h.t)}

    @leafwise(
        AdamomentumState,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        step=step,
        m=zeros(),
        v=squares(),
        v_max=squares() if amsgrad else None,
    )
    def rule(g: Array, s: AdamomentumState, h: Any) -> tuple[Array, AdamomentumState]:
        keep, take = split_decay(h.b2)
        m = ema(s.m, g, h.b1)
        v = keep * s.v + (take * abs_sq(m) + h.eps)
        largest = jnp.maximum(s.v_max, v) if amsgrad else v
        u = rectified(m, v, h) if rectify else h.gain * m / jnp.sqrt(largest)
        return u, s._replace(m=m, v=v, v_max=largest)

    return rule


@method
def adamomentum(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    amsgrad: bool = False,
    rectify: bool = False,
    degenerated_to_sgd: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decouple: bool = True,
    fixed_decay: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaMomentum (arXiv:2106.11514).

    The first step is 1 / (1 - b1) times Adam's, and under pure noise every step is larger than Adam's by about
    sqrt((1 + b1) / (1 - b1)): start from a smaller rate than Adam's, or warm up.

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the second moment at every step, and to the root when rectified. With 0 an entry that never had a
        gradient becomes NaN.
      amsgrad: divide by the running maximum; without effect when rectified.
      rectify: RAdam's variance rectification, with the division by the root off while rho_t < 5.
      degenerated_to_sgd: while rho_t < 5 step along the first moment; otherwise do not move.
      weight_decay: decay coefficient.
      weight_decouple: decay the weights directly instead of adding to the gradient.
      fixed_decay: decoupled decay that is not multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; two numbers of state per parameter, three with `amsgrad`.

    Raises:
      ValueError: a number out of its range.
    """
    direction = scale_by_adamomentum(b1, b2, eps, amsgrad, rectify, degenerated_to_sgd)
    return finish(direction, learning_rate, weight_decay, mask, decay=decoupling(weight_decouple, fixed_decay))


PAPER = register(
    Paper(
        name="adamomentum",
        title="Rethinking Adam: A Twofold Exponential Moving Average Approach",
        authors=(
            "Wang, Yizhou",
            "Kang, Yue",
            "Qin, Can",
            "Wang, Huan",
            "Xu, Yi",
            "Zhang, Yulun",
            "Fu, Yun",
        ),
        year=2021,
        arxiv="2106.11514",
        make=adamomentum,
        transform=scale_by_adamomentum,
        states=(AdamomentumState,),
        floats_per_parameter=2,
        relative_learning_rate=0.25,
        golden=("adamomentum.default", "adamomentum.wd"),
    )
)
