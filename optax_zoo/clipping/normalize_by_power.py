"""Generalized-Smooth Nonconvex Optimization is As Efficient As Smooth Nonconvex Optimization.

Ziyi Chen, Yi Zhou, Yingbin Liang, Zhaosong Lu, 2023, arXiv:2303.02854, Algorithm 1.
Divides the gradient by a power of its norm: where smoothness grows with the gradient, steps that shrink as it grows
converge as fast as gradient descent does under ordinary smoothness.

Differs from the authors' code: `eps` is an addition. Their stochastic method is the power 1 on SPIDER's estimate of
the gradient, so chain this behind a variance-reduced gradient.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register


class NormalizeByPowerState(NamedTuple):
    """Only the count, for schedules."""

    count: Array  # steps taken


@method
def normalize_by_power(
    beta: ScalarOrSchedule = 1.0, eps: ScalarOrSchedule = 0.0, floor: ScalarOrSchedule | None = None
) -> optax.GradientTransformationExtraArgs:
    """g / (max(|g|, floor) + eps)^beta, the norm over the whole tree, and 0 for g = 0 (arXiv:2303.02854).

    Args:
      beta: in [0, 1]; 0 is gradient descent, 1 normalised gradient descent. The paper wants it at least as large as
        the power of the gradient's norm with which smoothness grows.
      eps: added to the norm, in units of the gradient.
      floor: norms below it count as it, > 0; with beta=1 the authors' clipped gradient descent. None: 0.

    Returns:
      A transformation without slots.

    Raises:
      ValueError: a number out of its range.
    """

    def sums(g: Array, s: NormalizeByPowerState, h: Any) -> dict[str, Array]:
        return {"square": jnp.sum(abs_sq(g))}

    def step(h: Any, s: NormalizeByPowerState) -> dict[str, Array]:
        norm = jnp.sqrt(getattr(h, "square", jnp.zeros(())))
        divisor = (norm if floor is None else jnp.maximum(norm, h.floor)) + h.eps
        return {"factor": jnp.where(divisor == 0, 0.0, jnp.where(divisor == 0, 1.0, divisor) ** -h.beta)}

    @leafwise(
        NormalizeByPowerState,
        hyper={"beta": beta, "eps": eps} | ({} if floor is None else {"floor": floor}),
        ranges={"beta": "[0, 1]", "floor": "(0, inf)"},
        sums=sums,
        step=step,
    )
    def rule(g: Array, s: NormalizeByPowerState, h: Any) -> tuple[Array, NormalizeByPowerState]:
        return h.factor * g, s

    return rule


PAPER = register(
    Paper(
        name="normalize_by_power",
        title="Generalized-Smooth Nonconvex Optimization is As Efficient As Smooth Nonconvex Optimization",
        authors=("Chen, Ziyi", "Zhou, Yi", "Liang, Yingbin", "Lu, Zhaosong"),
        year=2023,
        arxiv="2303.02854",
        algorithm="Algorithm 1",
        kind="transform",
        make=normalize_by_power,
        states=(NormalizeByPowerState,),
        elementwise=False,
        base=optax.sgd,
        relative_learning_rate=30.0,
    )
)
