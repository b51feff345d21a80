"""Grams: Gradient Descent with Adaptive Momentum Scaling.

Yang Cao, Xiaoyu Li, Zhao Song, 2024, arXiv:2412.17107.
The length of Adam's step with the signs of the gradient, so that no entry ever moves uphill of its own batch.
`grams_direction` does the same to any other update.

Differs from the authors' code: nothing. The wrapper is an addition; around Adam with eps on the uncorrected root it is
Grams.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, debias, ema
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros
from optax_zoo._core.steering import Direction, steering


class GramsState(NamedTuple):
    """Adam's moments."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerParameter  # second moment


class GramsDirectionState(NamedTuple):
    """Only the wrapped method's state."""

    count: Array  # steps taken
    inner_state: Any  # of the method wrapped


def _signed_like(u: Array, g: Array) -> Array:
    return jnp.sign(g) * jnp.abs(u)


@method
def scale_by_grams(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The Grams direction; arguments as in `grams`."""

    def step(h: Any, s: GramsState) -> dict[str, Any]:
        return {"gain": jnp.sqrt(debias(h.b2, h.t)) / debias(h.b1, h.t) if bias_correction else 1.0}

    @leafwise(GramsState, hyper={"b1": b1, "b2": b2, "eps": eps}, step=step, m=zeros(), v=squares())
    def rule(g: Array, s: GramsState, h: Any) -> tuple[Array, GramsState]:
        m = ema(s.m, g, h.b1)
        v = ema(s.v, abs_sq(g), h.b2)
        u = h.gain * m / (jnp.sqrt(v) + h.eps)
        return _signed_like(u, g), s._replace(m=m, v=v)

    return rule


@method
def grams_direction(
    inner: optax.GradientTransformation, *, direction: Direction = "ascent"
) -> optax.GradientTransformationExtraArgs:
    """Gives every entry of the updates of `inner` the sign of the gradient, and leaves it its size (arXiv:2412.17107).

    Args:
      inner: any transformation; extra arguments are forwarded to it. Weight decay inside of it is part of the size:
        put decay behind the wrapper.
      direction: "ascent" around a `scale_by_x`, which still lacks the learning rate; "descent" around an optimizer,
        whose updates are added to the parameters and so get the sign opposite to the gradient's.

    Returns:
      The wrapper, without slots of its own.

    Raises:
      TypeError: `inner` is not a gradient transformation.
      ValueError: `direction` is neither word.
    """

    @steering(inner, GramsDirectionState, direction=direction)
    def rule(u: Array, g: Array, h: Any) -> Array:
        return _signed_like(u, g)

    return rule


@method
def grams(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    bias_correction: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Grams (arXiv:2412.17107).

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the uncorrected root.
      bias_correction: correct both moments as Adam does.
      weight_decay: decoupled decay, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; two numbers of state per parameter.

    Raises:
      ValueError: a number out of its range.
    """
    return finish(scale_by_grams(b1, b2, eps, bias_correction), learning_rate, weight_decay, mask)


PAPER = register(
    Paper(
        name="grams",
        title="Grams: Gradient Descent with Adaptive Momentum Scaling",
        authors=("Cao, Yang", "Li, Xiaoyu", "Song, Zhao"),
        year=2024,
        arxiv="2412.17107",
        make=grams,
        transform=scale_by_grams,
        states=(GramsState,),
        floats_per_parameter=2,
        golden=("grams.default", "grams.wd"),
    )
)
DIRECTION = register(
    Paper(
        name="grams_direction",
        title=PAPER.title,
        authors=PAPER.authors,
        year=PAPER.year,
        arxiv=PAPER.arxiv,
        make=grams_direction,
        kind="wrapper",
        states=(GramsDirectionState,),
        example={"direction": "descent"},
    )
)
