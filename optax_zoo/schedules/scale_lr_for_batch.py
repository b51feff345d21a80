"""Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training.

Diego Granziol, Stefan Zohren, Stephen Roberts, 2020, arXiv:2006.09092.
Up to a batch size that depends on the problem, the learning rate of SGD grows with the batch size, that of adaptive
methods with its square root.
"""

from typing import Any, Literal

import optax
from jax import Array

from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, check_range, choice, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo.schedules._count import floating

Rule = Literal["linear", "sqrt"]


@method
def scale_lr_for_batch(lr: ScalarOrSchedule, batch: Scalar, base_batch: Scalar, rule: Rule) -> Array | optax.Schedule:
    """The learning rate for another batch size (arXiv:2006.09092).

    Args:
      lr: what is good for `base_batch`; a number or a schedule.
      batch: examples in a batch, > 0.
      base_batch: examples in the batch that `lr` belongs to, > 0.
      rule: "linear" for SGD with or without momentum, "sqrt" for adaptive methods.

    Returns:
      lr * batch / base_batch, or its root's share; a schedule if `lr` is one.

    Raises:
      ValueError: a number out of its range or an unknown `rule`.
    """
    choice("rule", rule, Rule)
    check_range("lr", lr, "[0, inf)")
    ratio = floating(number("batch", batch, "(0, inf)")) / floating(number("base_batch", base_batch, "(0, inf)"))
    factor = ratio if rule == "linear" else ratio**0.5
    if not callable(lr):
        return lr * factor

    def scaled(count: Any) -> Array:
        return lr(count) * factor

    return scaled


PAPER = register(
    Paper(
        name="scale_lr_for_batch",
        title="Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training",
        authors=("Granziol, Diego", "Zohren, Stefan", "Roberts, Stephen"),
        year=2020,
        arxiv="2006.09092",
        kind="function",
        make=scale_lr_for_batch,
    )
)
