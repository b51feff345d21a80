"""Brain-like learning with exponentiated gradients.

Jonathan Cornford, Roman Pogodin, Arna Ghosh, Kaiwen Sheng, Brendan A. Bicknell, Olivier Codol, Beverley A. Clark,
Guillaume Lajoie, Blake A. Richards, 2024, bioRxiv 2024.10.25.620272, after Kivinen and Warmuth, 1997.
Weights move by factors instead of terms, p <- p exp(-lr sign(p) d): no weight ever changes its sign (Dale's law).
`apply_exponentiated` is the step alone, the optimizer inside "Dale meets Langevin" (arXiv:2510.02730); UNVERIFIED
which exact form that paper prints.

Differs from the authors' code: exponents are clipped, above at 20 and below where the rounded update would be -p
itself, so that no single step overflows or kills a weight; nesterov momentum may be dampened.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, flags
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, choice, debias, ema, is_zero
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros
from optax_zoo._core.trees import PyTree

Base = Literal["sgd", "adamw"]

LARGEST_EXPONENT = 20.0


class ExponentiatedGradientState(NamedTuple):
    """What the direction of SGD or Adam remembers."""

    count: Array  # steps taken
    buffer: PerParameter  # SGD's momentum
    m: PerParameter  # first moment
    v: PerParameter  # second moment
    v_max: PerParameter  # its maximum (amsgrad)


class ApplyExponentiatedState(NamedTuple):
    """The multiplicative step."""

    count: Array  # steps taken
    learning_rate: Array  # last rate used


@method
def exponentiated_gradient(
    learning_rate: ScalarOrSchedule,
    base: Base = "sgd",
    momentum: ScalarOrSchedule = 0.0,
    dampening: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    amsgrad: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Exponentiated gradient: the direction of SGD or Adam, applied as a factor (bioRxiv 2024.10.25.620272).

    A weight that is 0 never moves, so start away from 0 and give zero-initialised biases to another optimizer
    (`optax.partition`). For small steps the update is -lr |p| d.

    Args:
      learning_rate: step size, >= 0; times |d| it is clipped at 20.
      base: the direction d, "sgd" or "adamw".
      momentum: sgd: decay of the buffer, in [0, 1); a Python 0 leaves the buffer out.
      dampening: sgd: share of the gradient kept out of the buffer after the first step, in [0, 1].
      nesterov: sgd: look ahead by one momentum step.
      b1: adamw: decay of the first moment, in [0, 1).
      b2: adamw: decay of the second moment, in [0, 1).
      eps: adamw: added to the root.
      amsgrad: adamw: divide by the maximum of the uncorrected second moment.
      weight_decay: sgd: wd sign(p) is added to the gradient, so that weights shrink by the factor exp(-lr wd);
        adamw: they shrink by the factor 1 - lr wd before the step.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; up to three numbers of state per parameter.

    Raises:
      ValueError: a number out of its range, an unknown `base`; in `update`, params are missing.
      TypeError: complex leaves.
    """
    choice("base", base, Base)
    numbers = {"momentum": momentum, "dampening": dampening, "b1": b1, "b2": b2, "eps": eps}
    if base == "adamw":
        return optax.chain(_adam(numbers, amsgrad), _apply(learning_rate, weight_decay, mask))
    return optax.chain(_sgd(numbers | {"weight_decay": weight_decay}, nesterov, mask), _apply(learning_rate))


@method
def apply_exponentiated(learning_rate: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """The last link of a chain: turns an ascent direction d into the update p (exp(-lr sign(p) d) - 1).

    Alone it is plain exponentiated gradient descent (arXiv:2510.02730).

    Args:
      learning_rate: step size, >= 0; times |d| it is clipped at 20.

    Returns:
      A transformation without slots, whose update is to be added to the parameters; no learning rate follows.

    Raises:
      ValueError: `learning_rate` < 0; in `update`, params are missing.
      TypeError: complex leaves.
    """
    return _apply(learning_rate)


def _sgd(numbers: dict[str, Any], nesterov: bool, mask: Mask | None) -> optax.GradientTransformationExtraArgs:
    remembers, decays = not is_zero(numbers["momentum"]), not is_zero(numbers["weight_decay"])

    def step(h: Any, s: ExponentiatedGradientState) -> dict[str, Array]:
        return {"take": jnp.where(h.count == 0, 1.0, 1.0 - h.dampening)}

    @leafwise(
        ExponentiatedGradientState,
        hyper=numbers,
        ranges={"dampening": "[0, 1]"},
        static={"mask": flags(mask)},
        step=step,
        real_only=True,
        buffer=zeros() if remembers else None,
        m=None,
        v=None,
        v_max=None,
    )
    def rule(
        g: Array, s: ExponentiatedGradientState, h: Any, p: Array, *, mask: bool
    ) -> tuple[Array, ExponentiatedGradientState]:
        d = g + h.weight_decay * jnp.sign(p) if decays and mask else g
        if not remembers:
            return d, s
        buffer = h.momentum * s.buffer + h.take * d
        return d + h.momentum * buffer if nesterov else buffer, s._replace(buffer=buffer)

    return rule


def _adam(numbers: dict[str, Any], amsgrad: bool) -> optax.GradientTransformationExtraArgs:
    def step(h: Any, s: ExponentiatedGradientState) -> dict[str, Array]:
        return {"bias1": debias(h.b1, h.t), "root_bias2": jnp.sqrt(debias(h.b2, h.t))}

    @leafwise(
        ExponentiatedGradientState,
        hyper=numbers,
        ranges={"dampening": "[0, 1]"},
        step=step,
        real_only=True,
        buffer=None,
        m=zeros(),
        v=squares(),
        v_max=squares() if amsgrad else None,
    )
    def rule(g: Array, s: ExponentiatedGradientState, h: Any) -> tuple[Array, ExponentiatedGradientState]:
        m = ema(s.m, g, h.b1)
        v = ema(s.v, abs_sq(g), h.b2)
        largest = jnp.maximum(s.v_max, v) if amsgrad else v
        return (m / h.bias1) / (jnp.sqrt(largest) / h.root_bias2 + h.eps), s._replace(m=m, v=v, v_max=largest)

    return rule


def _apply(
    learning_rate: ScalarOrSchedule, weight_decay: ScalarOrSchedule = 0.0, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    decays = not is_zero(weight_decay)

    def step(h: Any, s: ApplyExponentiatedState) -> dict[str, Any]:
        return {"learning_rate": h.learning_rate, "shrink": h.learning_rate * h.weight_decay}

    @leafwise(
        ApplyExponentiatedState,
        hyper={"learning_rate": learning_rate, "weight_decay": weight_decay},
        static={"mask": flags(mask), "least": least_exponents},
        step=step,
        real_only=True,
        learning_rate=0.0,
    )
    def rule(
        d: Array, s: ApplyExponentiatedState, h: Any, p: Array, *, mask: bool, least: float
    ) -> tuple[Array, ApplyExponentiatedState]:
        x = (1 - h.shrink) * p if decays and mask else p
        growth = jnp.expm1(jnp.clip(-h.learning_rate * jnp.sign(x) * d, least, LARGEST_EXPONENT))
        return x * growth - h.shrink * p if decays and mask else x * growth, s

    return rule


def least_exponents(tree: PyTree) -> PyTree:
    """Of each leaf the exponent below which p + p (exp(.) - 1) would round to 0, at least -20."""
    return jax.tree.map(lambda leaf: max(-LARGEST_EXPONENT, math.log(4 * float(jnp.finfo(leaf.dtype).eps))), tree)


PAPER = register(
    Paper(
        name="exponentiated_gradient",
        title="Brain-like learning with exponentiated gradients",
        authors=(
            "Cornford, Jonathan",
            "Pogodin, Roman",
            "Ghosh, Arna",
            "Sheng, Kaiwen",
            "Bicknell, Brendan A.",
            "Codol, Olivier",
            "Clark, Beverley A.",
            "Lajoie, Guillaume",
            "Richards, Blake A.",
        ),
        year=2024,
        url="https://doi.org/10.1101/2024.10.25.620272",
        make=exponentiated_gradient,
        states=(ExponentiatedGradientState,),
        needs=("params",),
        relative_learning_rate=100.0,
        golden=("exponentiated_gradient.default", "exponentiated_gradient.momentum_wd", "exponentiated_gradient.adamw"),
    )
)
DALE_MEETS_LANGEVIN = register(
    Paper(
        name="apply_exponentiated",
        title="Dale meets Langevin: A Multiplicative Denoising Diffusion Model",
        authors=("Shetty, Nishanth", "Prasath, Madhava", "Seelamantula, Chandra Sekhar"),
        year=2025,
        arxiv="2510.02730",
        make=apply_exponentiated,
        states=(ApplyExponentiatedState,),
        needs=("params",),
        relative_learning_rate=100.0,
    )
)
