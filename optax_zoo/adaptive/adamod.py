"""An Adaptive and Momental Bound Method for Stochastic Learning: AdaMod.

Jianbang Ding, Xuancheng Ren, Ruixuan Luo, Xu Sun, 2019, arXiv:1910.12249.
Adam whose step sizes are bounded by their own slow average, which starts at 0: a warm-up of every entry by itself.

Differs from the authors' code: nothing. (Its text says 0.9999 for b3, its default is 0.999.)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, decay_with_rate
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, debias, ema
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros


class AdamodState(NamedTuple):
    """Adam's moments and the average of its step sizes."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerParameter  # second moment
    s: PerParameter  # average step size


@method
def scale_by_adamod(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """The AdaMod direction for a rate that does not change, arguments as in `adamod`.

    The average mixes the rates of many steps: under a schedule of the learning rate only `adamod` is the method.
    """
    return _bounded(1.0, 1.0, b1, b2, b3, eps)


def _bounded(
    sign: float,
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    b3: ScalarOrSchedule,
    eps: ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    def step(h: Any, s: AdamodState) -> dict[str, Array]:
        return {"rate": h.learning_rate * jnp.sqrt(debias(h.b2, h.t)) / debias(h.b1, h.t)}

    @leafwise(
        AdamodState,
        hyper={"learning_rate": learning_rate, "b1": b1, "b2": b2, "b3": b3, "eps": eps},
        step=step,
        m=zeros(),
        v=squares(),
        s=squares(),
    )
    def rule(g: Array, s: AdamodState, h: Any) -> tuple[Array, AdamodState]:
        m = ema(s.m, g, h.b1)
        v = ema(s.v, abs_sq(g), h.b2)
        average = ema(s.s, _adam_size(v, h, 1.0), h.b3)
        size = jnp.minimum(_adam_size(v, h, 2.0), average)
        return sign * size * m, s._replace(m=m, v=v, s=average)

    return rule


def _adam_size(v: Array, h: Any, scale: float) -> Array:
    """rate / (sqrt(v) + eps), for any `scale`.

    A power of two changes no bit, yet hides from XLA that a quotient occurs twice, which it would keep in memory.
    """
    return scale * h.rate / (jnp.sqrt(scale * scale * v) + scale * h.eps)


@method
def adamod(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaMod (arXiv:1910.12249).

    Args:
      learning_rate: step size, >= 0; part of what is averaged, so that after a decay the bounds stay high for a while.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      b3: decay of the average step size, in [0, 1); 0 removes the bounds. About 1 / (1 - b3) steps of warm-up.
      eps: added to the uncorrected root.
      weight_decay: decoupled decay, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; three numbers of state per parameter.

    Raises:
      ValueError: a number out of its range.
    """
    return decay_with_rate(_bounded(-1.0, learning_rate, b1, b2, b3, eps), learning_rate, weight_decay, mask)


PAPER = register(
    Paper(
        name="adamod",
        title="An Adaptive and Momental Bound Method for Stochastic Learning",
        authors=("Ding, Jianbang", "Ren, Xuancheng", "Luo, Ruixuan", "Sun, Xu"),
        year=2019,
        arxiv="1910.12249",
        make=adamod,
        transform=scale_by_adamod,
        states=(AdamodState,),
        floats_per_parameter=3,
        relative_learning_rate=4.0,
        golden=("adamod.default", "adamod.wd"),
    )
)
