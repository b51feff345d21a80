"""Ano: Faster is Better in Noisy Landscapes: Ano and Anolog.

Adrien Kegreisz, 2025, arXiv:2508.18258.
The direction from the sign of the momentum, which noise hardly turns, and the length from the gradient itself, which
noise does not cancel; Anolog lengthens the memory of the momentum as training goes on.

Differs from the author's code: b2 below 0.5, with which the second moment turns negative and the steps NaN, is
refused. The paper's own box (as restated by others) has eps outside of the root and 1 - 1/log(t + 2) for Anolog.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import Decay, ScalarOrSchedule, abs_sq, choice, debias, ema, split_decay
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, wide_zeros, zeros

Lengthening: TypeAlias = Literal["log", "sqrt", "inverse"]

_RANGES = {"b2": "[0.5, 1)"}


class AnoState(NamedTuple):
    """Momentum and a second moment that forgets as it falls."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerParameter  # second moment


@method
def scale_by_ano(
    b1: ScalarOrSchedule = 0.92, b2: ScalarOrSchedule = 0.99, eps: ScalarOrSchedule = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """The Ano direction; arguments as in `ano`."""

    def step(h: Any, s: AnoState) -> dict[str, Array]:
        return {"unbias": 1 / debias(h.b2, h.t)}

    rule = leafwise(AnoState, hyper={"b1": b1, "b2": b2, "eps": eps}, ranges=_RANGES, step=step, m=zeros(), v=squares())
    return rule(_rule)


@method
def scale_by_anolog(
    b2: ScalarOrSchedule = 0.999, eps: ScalarOrSchedule = 1e-8, schedule: Lengthening = "log"
) -> optax.GradientTransformationExtraArgs:
    """The Anolog direction; arguments as in `anolog`."""
    choice("schedule", schedule, Lengthening)

    def step(h: Any, s: AnoState) -> dict[str, Any]:
        take = {
            "log": lambda: 1 / jnp.log(jnp.maximum(h.t, 2.0)),
            "sqrt": lambda: 1 / jnp.sqrt(h.t),
            "inverse": lambda: 1 / h.t,
        }[schedule]()
        return {"b1": Decay(1 - take, take), "unbias": 1.0}

    rule = leafwise(
        AnoState,
        hyper={"b2": b2, "eps": eps},
        ranges=_RANGES,
        step=step,
        m=zeros() if schedule == "log" else wide_zeros(),
        v=squares(),
    )
    return rule(_rule)


def _rule(g: Array, s: AnoState, h: Any) -> tuple[Array, AnoState]:
    keep, take = split_decay(h.b2)
    m = ema(s.m, g, h.b1)
    v = keep * s.v + take * jnp.sign(abs_sq(g) - s.v) * abs_sq(g)
    u = jnp.abs(g) * jnp.sign(m) / jnp.sqrt(h.unbias * v + h.eps)
    return u, s._replace(m=m, v=v)


@method
def ano(
    learning_rate: ScalarOrSchedule = 1e-4,
    b1: ScalarOrSchedule = 0.92,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Ano (arXiv:2508.18258).

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the momentum, in [0, 1); only its sign is used.
      b2: decay of the second moment, in [0.5, 1).
      eps: added under the root.
      weight_decay: decoupled decay, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; two numbers of state per parameter.

    Raises:
      ValueError: a number out of its range.
    """
    return finish(scale_by_ano(b1, b2, eps), learning_rate, weight_decay, mask)


@method
def anolog(
    learning_rate: ScalarOrSchedule = 1e-4,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    schedule: Lengthening = "log",
) -> optax.GradientTransformationExtraArgs:
    """Anolog (arXiv:2508.18258): Ano without b1, and without bias correction.

    Args:
      learning_rate: step size, >= 0.
      b2: decay of the second moment, in [0.5, 1).
      eps: added under the root.
      weight_decay: decoupled decay, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.
      schedule: the decay of the momentum at step t: "log": 1 - 1/log(t), with t at least 2, which makes it negative
        in the first two steps; "sqrt": 1 - 1/sqrt(t); "inverse": 1 - 1/t, the mean of all gradients.

    Returns:
      The optimizer; two numbers of state per parameter.

    Raises:
      ValueError: a number out of its range, or an unknown schedule.
    """
    return finish(scale_by_anolog(b2, eps, schedule), learning_rate, weight_decay, mask)


PAPER = register(
    Paper(
        name="ano",
        title="Ano: Faster is Better in Noisy Landscapes",
        authors=("Kegreisz, Adrien",),
        year=2025,
        arxiv="2508.18258",
        make=ano,
        transform=scale_by_ano,
        states=(AnoState,),
        floats_per_parameter=2,
        relative_learning_rate=0.3,
        golden=("ano.default",),
    )
)
ANOLOG = register(
    dataclasses.replace(
        PAPER,
        name="anolog",
        make=anolog,
        transform=scale_by_anolog,
        relative_learning_rate=0.2,
        golden=("anolog.default",),
    )
)
