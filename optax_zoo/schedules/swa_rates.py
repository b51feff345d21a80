"""The learning rates of stochastic weight averaging: high and constant, cyclical, or annealed to a constant.

Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson, 2018, arXiv:1803.05407,
Section 3. `swalr` is PyTorch's.
"""

from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, check_range, choice, number
from optax_zoo._core.naming import method
from optax_zoo.schedules._count import between, floating

Anneal = Literal["cos", "linear"]


@method
def swa_lr_schedule(lr_init: Scalar, swa_lr: Scalar, swa_start: Scalar) -> optax.Schedule:
    """The authors' rate: `lr_init`, from half of `swa_start` linearly down to `swa_lr`, reached at 0.9 of it.

    Args:
      lr_init: first rate, >= 0.
      swa_lr: last rate, >= 0.
      swa_start: where averaging starts, > 0, in the unit of the count: epochs in the paper, else steps.

    Returns:
      A schedule of the 0-based count.
    """
    first, last = number("lr_init", lr_init, "[0, inf)"), number("swa_lr", swa_lr, "[0, inf)")
    end = number("swa_start", swa_start, "(0, inf)")

    def rate(count: Any) -> Array:
        return between(first, last, jnp.clip((floating(count) / floating(end) - 0.5) / 0.4, 0.0, 1.0))

    return rate


@method
def cyclic_lr(alpha1: Scalar, alpha2: Scalar, c: Scalar) -> optax.Schedule:
    """The cyclical rate of SWA, sawteeth that fall from `alpha1` and end at `alpha2`.

    At step i = 1, 2, ... it is (1 - tau) alpha1 + tau alpha2 with tau = ((i - 1) mod c + 1) / c.

    Args:
      alpha1: rate from which each cycle falls, >= 0.
      alpha2: rate of the last step of each cycle, >= 0.
      c: steps in a cycle, >= 1; collect with `with_swa(inner, start=c, freq=c)`.

    Returns:
      A schedule of the 0-based count i - 1.
    """
    first, last = number("alpha1", alpha1, "[0, inf)"), number("alpha2", alpha2, "[0, inf)")
    cycle = number("c", c, "[1, inf)")
    return lambda count: between(first, last, (jnp.mod(floating(count), floating(cycle)) + 1.0) / floating(cycle))


@method
def swalr(
    swa_lr: Scalar,
    anneal_steps: Scalar = 10,
    anneal: Anneal = "cos",
    *,
    lr_init: ScalarOrSchedule,
    start: Scalar = 0,
) -> optax.Schedule:
    """`torch.optim.swa_utils.SWALR`: from the rate reached at `start` to `swa_lr` in `anneal_steps` steps.

    Args:
      swa_lr: last rate, >= 0.
      anneal_steps: steps of the way, >= 0.
      anneal: "linear", or "cos" for half a wave of the cosine.
      lr_init: the rate before, a number or a schedule; followed up to `start` and annealed from there.
      start: 0-based count at which annealing starts, >= 0.

    Returns:
      A schedule of the 0-based count.

    Raises:
      ValueError: a number out of its range or an unknown `anneal`.
    """
    choice("anneal", anneal, Anneal)
    check_range("lr_init", lr_init, "[0, inf)")
    last, begin = number("swa_lr", swa_lr, "[0, inf)"), number("start", start, "[0, inf)")
    steps = number("anneal_steps", anneal_steps, "[0, inf)")

    def rate(count: Any) -> Array:
        before = jnp.minimum(jnp.asarray(count), jnp.asarray(begin, jnp.result_type(count)))
        current = lr_init(before) if callable(lr_init) else lr_init
        since, whole = floating(count) - floating(begin), floating(steps)
        done = jnp.clip(since / jnp.where(whole > 0, whole, 1.0), 0.0, 1.0)
        done = jnp.where((whole == 0) & (since >= 0), 1.0, done)
        return between(current, last, done if anneal == "linear" else (1.0 - jnp.cos(jnp.pi * done)) / 2.0)

    return rate
