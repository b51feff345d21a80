"""AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients.

Juntang Zhuang, Tommy Tang, Yifan Ding, Sekhar Tatikonda, Nicha Dvornek, Xenophon Papademetris, James S. Duncan,
2020, arXiv:2010.07468, Algorithm 2; rectification as in RAdam.
Adam that divides by the spread of the gradient around its EMA instead of its size.

Differs from the authors' code (adabelief_pytorch 0.2.1): nothing. As there, eps accumulates in the second moment and
is added to the root again, and the rectified rule ignores `amsgrad`.
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


class AdabeliefState(NamedTuple):
    """Moments of the gradient and of its distance from the first."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    s: PerParameter  # squared residual
    s_max: PerParameter  # its maximum (amsgrad)


@method
def scale_by_adabelief(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    amsgrad: bool = False,
    rectify: bool = True,
    degenerated_to_sgd: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The AdaBelief direction; arguments as in `adabelief`."""

    def step(h: Any, s: AdabeliefState) -> dict[str, Array]:
        if rectify:
            return rectified_scalars(h, degenerated_to_sgd)
        return {"gain": 1 / debias(h.b1, h.t), "unbias": 1 / jnp.sqrt(debias(h.b2, h.t))}

    @leafwise(
        AdabeliefState,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        step=step,
        m=zeros(),
        s=squares(),
        s_max=squares() if amsgrad else None,
    )
    def rule(g: Array, s: AdabeliefState, h: Any) -> tuple[Array, AdabeliefState]:
        keep, take = split_decay(h.b2)
        m = ema(s.m, g, h.b1)
        spread = keep * s.s + (take * abs_sq(g - m) + h.eps)
        largest = jnp.maximum(s.s_max, spread) if amsgrad else spread
        u = rectified(m, spread, h) if rectify else h.gain * m / (h.unbias * jnp.sqrt(largest) + h.eps)
        return u, s._replace(m=m, s=spread, s_max=largest)

    return rule


@method
def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    amsgrad: bool = False,
    rectify: bool = True,
    degenerated_to_sgd: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decouple: bool = True,
    fixed_decay: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief (arXiv:2010.07468, Algorithm 2).

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the squared residual, in [0, 1).
      eps: added to the squared residual at every step, and to the root.
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
    direction = scale_by_adabelief(b1, b2, eps, amsgrad, rectify, degenerated_to_sgd)
    return finish(direction, learning_rate, weight_decay, mask, decay=decoupling(weight_decouple, fixed_decay))


PAPER = register(
    Paper(
        name="adabelief",
        title="AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
        authors=(
            "Zhuang, Juntang",
            "Tang, Tommy",
            "Ding, Yifan",
            "Tatikonda, Sekhar",
            "Dvornek, Nicha",
            "Papademetris, Xenophon",
            "Duncan, James S.",
        ),
        year=2020,
        arxiv="2010.07468",
        algorithm="Algorithm 2",
        make=adabelief,
        transform=scale_by_adabelief,
        states=(AdabeliefState,),
        floats_per_parameter=2,
        relative_learning_rate=2.0,
        races_by_default=True,
        golden=("adabelief.default", "adabelief.norectify"),
    )
)
