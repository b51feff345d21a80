"""A second-order-like optimizer with adaptive gradient scaling for deep learning: INNAprop.

Jérôme Bolte, Ryan Boustany, Edouard Pauwels, Andrei Purica, 2024, arXiv:2410.05871.
The inertial Newton dynamics x'' + alpha x' + beta H(x) x' + grad f(x) = 0, in which the Hessian damps oscillations and
never has to be computed, with gradients scaled as in RMSprop.

Differs from the authors' code: nothing. Both x and psi take the same explicit Euler step towards each other, and x one
along the gradient besides; the division by beta - learning_rate writes the former with the new psi.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, flags
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, debias, ema, is_zero, resolve
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, Slot, at_least_float32, squares


class InnapropState(NamedTuple):
    """The second moment and the auxiliary point of the dynamics."""

    count: Array  # steps taken
    v: PerParameter  # second moment
    psi: PerParameter  # auxiliary point


@method
def innaprop(
    learning_rate: ScalarOrSchedule = 1e-3,
    alpha: ScalarOrSchedule = 0.1,
    beta: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """INNAprop (arXiv:2410.05871).

    Args:
      learning_rate: step size, >= 0 and below `beta`, as AdamW's.
      alpha: viscous damping, >= 0.
      beta: Hessian-driven (Newton) damping, > 0. The authors' runs have (alpha, beta) = (0.1, 0.9); (1, 1) and (2, 2)
        are the alternatives. With alpha beta = 1 the method is RMSprop of the rate learning_rate * beta.
      b2: decay of the second moment, in [0, 1); `sigma` in the paper.
      eps: added to the root of the corrected second moment.
      weight_decay: decoupled decay, multiplied by the learning rate, before the step.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer, which needs params; two numbers of state per parameter.

    Raises:
      ValueError: a number out of its range, or learning_rate = beta; in `update`, params are missing.
    """
    if not callable(learning_rate) and not callable(beta) and is_zero(learning_rate - beta):
        raise ValueError(f"innaprop: learning_rate must not equal beta, got {learning_rate!r} for both")
    inertia = {"alpha": alpha, "beta": beta}

    def start(leaf: Array, dtype: jnp.dtype) -> Array:
        h = resolve(inertia, jnp.zeros((), jnp.int32))
        return jnp.asarray(1 - h["alpha"] * h["beta"]).astype(dtype) * leaf.astype(dtype)

    def step(h: Any, s: InnapropState) -> dict[str, Any]:
        return {
            "scale": 1 - h.alpha * h.beta,
            "pull": h.learning_rate / h.beta,
            "back": h.learning_rate / (h.beta - h.learning_rate),
            "gain": h.learning_rate * h.beta,
            "unbias": 1 / jnp.sqrt(debias(h.b2, h.t)),
            "decay": h.learning_rate * h.weight_decay,
        }

    @leafwise(
        InnapropState,
        hyper={"learning_rate": learning_rate, **inertia, "b2": b2, "eps": eps, "weight_decay": weight_decay},
        ranges={"alpha": "[0, inf)", "beta": "(0, inf)"},
        static={"mask": flags(mask)},
        step=step,
        v=squares(),
        psi=Slot(start, at_least_float32),
    )
    def rule(g: Array, s: InnapropState, h: Any, p: Array, *, mask: bool) -> tuple[Array, InnapropState]:
        x = (1 - h.decay) * p if mask else p
        v = ema(s.v, abs_sq(g), h.b2)
        d = h.unbias * jnp.sqrt(v) + h.eps
        psi = s.psi + h.pull * (h.scale * x - s.psi)
        u = h.back * (h.scale * x - psi) - h.gain * g / d
        return (u - h.decay * p if mask else u), s._replace(v=v, psi=psi)

    return rule


PAPER = register(
    Paper(
        name="innaprop",
        title="A second-order-like optimizer with adaptive gradient scaling for deep learning",
        authors=("Bolte, Jérôme", "Boustany, Ryan", "Pauwels, Edouard", "Purica, Andrei"),
        year=2024,
        arxiv="2410.05871",
        make=innaprop,
        states=(InnapropState,),
        needs=("params",),
        floats_per_parameter=2,
        relative_learning_rate=0.5,
        golden=("innaprop.default", "innaprop.a2b2"),
    )
)
