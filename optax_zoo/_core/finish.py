"""scale_by_x + weight decay + mask + learning rate -> x: the only alias recipe."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from optax_zoo._core import hyper as hp
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import speaker
from optax_zoo._core.signs import agreement
from optax_zoo._core.trees import PyTree, is_function

Mask: TypeAlias = Any
"""A (prefix) tree of bools, or a function of the parameters that returns one: True where weights decay."""

Decoupling: TypeAlias = Literal["lr", "fixed", "l2", "after", "cautious"]


class LearningRateState(NamedTuple):
    """State of the learning rate of an optimizer."""

    count: Array  # steps taken
    learning_rate: Array  # last rate used


class DecayState(NamedTuple):
    """State of weight decay."""

    count: Array  # steps taken


def finish(
    transform: optax.GradientTransformation,
    learning_rate: hp.ScalarOrSchedule,
    weight_decay: hp.ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decoupling = "lr",
) -> optax.GradientTransformationExtraArgs:
    """Chains `transform`, weight decay and the learning rate into a ready-to-use optimizer.

    Args:
      transform: an ascent direction u, no sign, no learning rate.
      learning_rate: number, array or schedule; the rate last used is in the state as
        `learning_rate`.
      weight_decay: decay coefficient wd; a Python 0 leaves decay out (then params are not needed for it).
      mask: which leaves decay; None: all.
      decay: "lr": `p - lr*u - lr*wd*p`; "fixed": `p - lr*u - wd*p`; "l2": `g + wd*p` goes into `transform`;
        "after": `(p - lr*u) (1 - lr*wd)`; "cautious": "lr" for entries with u p >= 0, others do not decay.

    Returns:
      An `optax.chain` whose update is in the gradients' dtype.
    """
    decays = not hp.is_zero(weight_decay)
    rate = _learning_rate(learning_rate, weight_decay if decays and decay != "l2" else 0.0, mask, decay)
    if decays and decay == "l2":
        return optax.chain(add_decay(weight_decay, mask), transform, rate)
    return optax.chain(transform, rate)


def decoupling(weight_decouple: bool, fixed_decay: bool) -> Decoupling:
    """`decay` of `finish` in the words of AdaBelief's code and its descendants."""
    if not weight_decouple:
        return "l2"
    return "fixed" if fixed_decay else "lr"


def decay_with_rate(
    step: optax.GradientTransformation,
    learning_rate: hp.ScalarOrSchedule,
    weight_decay: hp.ScalarOrSchedule,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled decay for a rule that has the learning rate inside: its finished update, minus lr*wd*p.

    Args:
      step: a rule that returns what is to be added to the parameters.
      learning_rate, weight_decay, mask: as in `finish`.
    """
    if hp.is_zero(weight_decay):
        return optax.with_extra_args_support(step)

    @leafwise(
        DecayState,
        hyper={"learning_rate": learning_rate, "weight_decay": weight_decay},
        static={"mask": flags(mask)},
    )
    def decay(update: Array, s: DecayState, h: Any, p: Array, *, mask: bool) -> tuple[Array, DecayState]:
        return (update - h.learning_rate * h.weight_decay * p if mask else update), s

    return optax.chain(step, decay)


def _learning_rate(
    learning_rate: hp.ScalarOrSchedule,
    weight_decay: hp.ScalarOrSchedule,
    mask: Mask | None,
    decay: Decoupling,
) -> optax.GradientTransformationExtraArgs:
    def step(h: Any, s: LearningRateState) -> dict[str, Any]:
        return {"learning_rate": h.learning_rate}

    if hp.is_zero(weight_decay):

        @leafwise(LearningRateState, hyper={"learning_rate": learning_rate}, step=step, learning_rate=0.0)
        def descend(u: Array, s: LearningRateState, h: Any) -> tuple[Array, LearningRateState]:
            return -h.learning_rate * u, s

        return descend

    @leafwise(
        LearningRateState,
        hyper={"learning_rate": learning_rate, "weight_decay": weight_decay},
        static={"mask": flags(mask)},
        step=step,
        learning_rate=0.0,
    )
    def descend_and_decay(
        u: Array, s: LearningRateState, h: Any, p: Array, *, mask: bool
    ) -> tuple[Array, LearningRateState]:
        if not mask:
            return -h.learning_rate * u, s
        if decay == "fixed":
            return -(h.learning_rate * u + h.weight_decay * p), s
        if decay == "cautious":
            return -h.learning_rate * jnp.where(agreement(u, p) >= 0, u + h.weight_decay * p, u), s
        if decay == "after":
            return -h.learning_rate * (u + h.weight_decay * (p - h.learning_rate * u)), s
        return -h.learning_rate * (u + h.weight_decay * p), s

    return descend_and_decay


def add_decay(weight_decay: hp.ScalarOrSchedule, mask: Mask | None) -> optax.GradientTransformationExtraArgs:
    @leafwise(DecayState, hyper={"weight_decay": weight_decay}, static={"mask": flags(mask)})
    def add(g: Array, s: DecayState, h: Any, p: Array, *, mask: bool) -> tuple[Array, DecayState]:
        return (g + h.weight_decay * p if mask else g), s

    return add


def flags(mask: Mask | None, argument: str = "mask") -> Callable[[PyTree], PyTree]:
    """`mask`, the method's `argument`, as a function of a tree that returns a (prefix) tree of Python bools."""
    name = speaker()

    def flag(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}: {argument} must hold True or False for every leaf, got {value!r}")
        return bool(value)

    def of(tree: PyTree) -> PyTree:
        return jax.tree.map(flag, True if mask is None else mask(tree) if is_function(mask) else mask)

    return of
