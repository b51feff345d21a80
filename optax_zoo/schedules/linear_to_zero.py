"""Straight to Zero: Why Linearly Decaying the Learning Rate to Zero Works Best for LLMs.

Shane Bergsma, Nolan Dey, Gurpreet Gosal, Gavia Gray, Daria Soboleva, Joel Hestness, 2025, arXiv:2502.15938.
A warm-up, then a straight line to exactly 0 (D2Z), which beats a cosine to a tenth where many tokens are seen for
each parameter.
"""

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import Scalar, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo.schedules._count import between, floating, ordered


@method
def linear_to_zero(
    peak_value: Scalar, total_steps: Scalar, warmup_steps: Scalar = 0, final_factor: Scalar = 0.0
) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then linear decay to zero (arXiv:2502.15938).

    Args:
      peak_value: rate at the end of the warm-up, >= 0.
      total_steps: step at which the last rate is reached, > warmup_steps; constant from there on.
      warmup_steps: steps of the warm-up, >= 0; the paper's tenth of all steps.
      final_factor: last rate over the peak, in [0, 1]; 0.1 is the paper's "10x decay".

    Returns:
      A schedule of the 0-based count.

    Raises:
      ValueError: a number out of its range, or a warm-up that ends after the run.
    """
    peak, final = number("peak_value", peak_value, "[0, inf)"), number("final_factor", final_factor, "[0, 1]")
    end, start = number("total_steps", total_steps, "(0, inf)"), number("warmup_steps", warmup_steps, "[0, inf)")
    ordered("warmup_steps", start, "total_steps", end)

    def rate(count: Any) -> Array:
        i, first, last = floating(count), floating(start), floating(end)
        rising = i / jnp.maximum(first, 1.0)
        falling = between(1.0, final, jnp.clip((i - first) / (last - first), 0.0, 1.0))
        return peak * jnp.where(i < first, rising, falling)

    return rate


PAPER = register(
    Paper(
        name="linear_to_zero",
        title="Straight to Zero: Why Linearly Decaying the Learning Rate to Zero Works Best for LLMs",
        authors=(
            "Bergsma, Shane",
            "Dey, Nolan",
            "Gosal, Gurpreet",
            "Gray, Gavia",
            "Soboleva, Daria",
            "Hestness, Joel",
        ),
        year=2025,
        arxiv="2502.15938",
        kind="function",
        make=linear_to_zero,
    )
)
