"""Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for Stochastic Optimization.

Aaron Defazio, Samy Jelassi, 2021, arXiv:2101.11075, Algorithm 1.
Dual averaging from the initial point with the cube root of the weighted squares as denominator, and momentum as an
average of the iterates; the mirror variant takes steps from the last point of the sequence instead of the initial one.

Differs from the authors' code: the initial point is stored for momentum 0 too, where theirs rebuilds it from the
parameters and starts with 0/0 if eps is 0. As there, eps is added to the learning rate and to the cube root, a rate
of 0 stays 0, and entries whose denominator is 0 do not move. `optax.contrib.madgrad` lacks the last two, the mirror
variant and decoupled decay.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, add_decay, flags
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, abs_sq, is_zero, split_decay
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.roots import cube_root
from optax_zoo._core.slots import PerParameter, copy, squares, wide_zeros


class MadgradState(NamedTuple):
    """The dual averages and where they start from."""

    count: Array  # steps taken
    q: PerParameter  # weighted squares, summed
    s: PerParameter  # weighted gradients, summed
    x0: PerParameter  # the initial parameters


class MirrorMadgradState(NamedTuple):
    """The squares and the point without momentum."""

    count: Array  # steps taken
    q: PerParameter  # decaying squares
    z: PerParameter  # point without momentum


@method
def madgrad(
    learning_rate: ScalarOrSchedule = 1e-2,
    momentum: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-6,
    decouple_decay: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MADGRAD (arXiv:2101.11075, Algorithm 1).

    The sums weigh the gradients of step t with the learning rate of step t times sqrt(t), so that the method has no
    `scale_by_madgrad`.

    Args:
      learning_rate: step size, >= 0; not comparable to Adam's, the best one is often larger. 0 stops the sums too.
      momentum: in [0, 1); the parameters move by 1 - momentum of the way to the dual average.
      weight_decay: decay coefficient; of a method that always looks back to its start, little or none is right.
      eps: added to the cube root, and to the learning rate.
      decouple_decay: decay the weights directly, times learning_rate + eps, instead of adding to the gradient.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer, which needs params; three numbers of state per parameter, in float32 or better.

    Raises:
      ValueError: a number out of its range; in `update`, params are missing.
    """
    decoupled = decouple_decay and not is_zero(weight_decay)

    def step(h: Any, s: MadgradState) -> dict[str, Array]:
        rate = _rate(h)
        return {"rate": rate, "lam": rate * jnp.sqrt(h.t)}

    @leafwise(
        MadgradState,
        hyper={"learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay, "eps": eps},
        static={"mask": flags(mask)},
        step=step,
        q=squares(),
        s=wide_zeros(),
        x0=copy(),
    )
    def rule(g: Array, s: MadgradState, h: Any, p: Array, *, mask: bool) -> tuple[Array, MadgradState]:
        q = s.q + h.lam * abs_sq(g)
        total = s.s + h.lam * g
        z = s.x0 - total / _denominator(q, h.eps)
        u = split_decay(h.momentum).take * (z - p)
        if decoupled and mask:
            u = u - h.rate * h.weight_decay * p
        return u, s._replace(q=q, s=total)

    return _with_l2(rule, weight_decay, mask, decouple_decay)


@method
def mirror_madgrad(
    learning_rate: ScalarOrSchedule = 1e-2,
    momentum: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 0.0,
    decouple_decay: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Mirror MADGRAD, the mirror descent version of the authors' code for arXiv:2101.11075.

    Args:
      learning_rate: step size, >= 0.
      momentum: in [0, 1); the parameters move by 1 - momentum of the way to the point without momentum.
      weight_decay: decay coefficient.
      eps: added to the cube root, and to the learning rate.
      decouple_decay: decay the point without momentum directly, times learning_rate + eps, before its step, instead
        of adding to the gradient.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer, which needs params; two numbers of state per parameter, in float32 or better.

    Raises:
      ValueError: a number out of its range; in `update`, params are missing.
    """
    decoupled = decouple_decay and not is_zero(weight_decay)

    def step(h: Any, s: MirrorMadgradState) -> dict[str, Array]:
        rate = _rate(h)
        return {"keep": jnp.sqrt((h.t - 1) / h.t), "rate": rate, "gain": rate * jnp.cbrt(h.t)}

    @leafwise(
        MirrorMadgradState,
        hyper={"learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay, "eps": eps},
        static={"mask": flags(mask)},
        step=step,
        q=squares(),
        z=copy(),
    )
    def rule(g: Array, s: MirrorMadgradState, h: Any, p: Array, *, mask: bool) -> tuple[Array, MirrorMadgradState]:
        q = h.keep * s.q + abs_sq(g)
        start = (1 - h.rate * h.weight_decay) * s.z if decoupled and mask else s.z
        z = start - h.gain * g / _denominator(q, h.eps)
        return split_decay(h.momentum).take * (z - p), s._replace(q=q, z=z)

    return _with_l2(rule, weight_decay, mask, decouple_decay)


def _rate(h: Any) -> Array:
    return jnp.where(h.learning_rate == 0, 0.0, h.learning_rate + h.eps)


def _denominator(q: Array, eps: Scalar) -> Array:
    d = cube_root(q) + eps
    return jnp.where(d == 0, jnp.inf, d)


def _with_l2(
    rule: optax.GradientTransformationExtraArgs, weight_decay: ScalarOrSchedule, mask: Mask | None, decoupled: bool
) -> optax.GradientTransformationExtraArgs:
    return rule if decoupled or is_zero(weight_decay) else optax.chain(add_decay(weight_decay, mask), rule)


_PAPER: dict[str, Any] = {
    "title": (
        "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for Stochastic"
        " Optimization"
    ),
    "authors": ("Defazio, Aaron", "Jelassi, Samy"),
    "year": 2021,
    "arxiv": "2101.11075",
    "needs": ("params",),
}
PAPERS = (
    register(
        Paper(
            name="madgrad",
            algorithm="Algorithm 1",
            make=madgrad,
            states=(MadgradState,),
            floats_per_parameter=3,
            golden=("madgrad.default", "madgrad.wd"),
            **_PAPER,
        )
    ),
    register(
        Paper(
            name="mirror_madgrad",
            make=mirror_madgrad,
            states=(MirrorMadgradState,),
            floats_per_parameter=2,
            relative_learning_rate=2.0,
            golden=("mirror_madgrad.default", "mirror_madgrad.wd"),
            **_PAPER,
        )
    ),
)
