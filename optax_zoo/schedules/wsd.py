"""Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations.

Alexander Hägele, Elie Bakouch, Atli Kosson, Loubna Ben Allal, Leandro Von Werra, Martin Jaggi, 2024,
arXiv:2405.18392. A constant rate with a short cooldown is as good as a cosine, and the length of the run can be
decided late.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from optax_zoo._core.hyper import Scalar, choice, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo.schedules._count import between, floating, ordered

Cooldown = Literal["sqrt", "linear", "cosine", "mirror_cosine", "square", "exp"]

_SHARES: Mapping[str, Callable[[Array], Array]] = {
    "sqrt": lambda x: 1.0 - jnp.sqrt(x),
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: (1.0 + jnp.cos(jnp.pi * x)) / 2.0,
    "mirror_cosine": lambda x: 2.0 * (1.0 - x) - (1.0 + jnp.cos(jnp.pi * x)) / 2.0,
    "square": lambda x: 1.0 - x * x,
}
"""Share of the peak that is left, of what lies above the last rate, at x in [0, 1] of the cooldown."""


@method
def wsd(
    peak_value: Scalar,
    total_steps: Scalar,
    warmup_steps: Scalar,
    decay_fraction: Scalar = 0.1,
    decay: Cooldown = "sqrt",
    init_div_factor: Scalar = 100,
    final_factor: Scalar = 0.0,
) -> optax.Schedule:
    """Warm-up, a constant rate, and a cooldown over the last steps (arXiv:2405.18392).

    Args:
      peak_value: the constant rate, >= 0.
      total_steps: step at which the cooldown ends, > warmup_steps; constant from there on.
      warmup_steps: steps of the linear warm-up, >= 0.
      decay_fraction: share of all steps that the cooldown takes, in [0, 1]; the paper uses about 0.2.
      decay: shape of the cooldown over x in [0, 1]: "sqrt" is 1 - sqrt(x), the paper's best; "linear" 1 - x; "square"
        1 - x^2; "cosine" half a wave, "mirror_cosine" its mirror image at the line; "exp" final_factor^x.
      init_div_factor: the warm-up starts at peak_value / init_div_factor, > 0.
      final_factor: last rate over the peak, in [0, 1]; above 0 for "exp".

    Returns:
      A schedule of the 0-based count.

    Raises:
      ValueError: a number out of its range, an unknown `decay`, or a cooldown that begins within the warm-up.
    """
    choice("decay", decay, Cooldown)
    peak, divisor = number("peak_value", peak_value, "[0, inf)"), number("init_div_factor", init_div_factor, "(0, inf)")
    final = number("final_factor", final_factor, "(0, 1]" if decay == "exp" else "[0, 1]")
    end, start = number("total_steps", total_steps, "(0, inf)"), number("warmup_steps", warmup_steps, "[0, inf)")
    share = number("decay_fraction", decay_fraction, "[0, 1]")
    ordered("warmup_steps", start, "total_steps", end)
    traced = any(isinstance(x, Tracer) for x in (share, start, end))
    cooldown = jnp.floor(share * end) if traced else math.floor(share * end)
    if not traced and end - cooldown < start:
        raise ValueError(f"wsd: the cooldown, {share} of {end} steps, must begin after warmup_steps, {start}")

    def rate(count: Any) -> Array:
        i, first, last, steps = map(floating, (count, start, end, cooldown))
        x = jnp.clip((i - (last - steps)) / jnp.maximum(steps, 1.0), 0.0, 1.0)
        left = final**x if decay == "exp" else between(final, 1.0, _SHARES[decay](x))
        left = jnp.where(i < last, left, final)
        rising = between(1.0 / divisor, 1.0, i / jnp.maximum(first, 1.0))
        return peak * jnp.where(i < first, rising, left)

    return rate


PAPER = register(
    Paper(
        name="wsd",
        title="Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
        authors=(
            "Hägele, Alexander",
            "Bakouch, Elie",
            "Kosson, Atli",
            "Ben Allal, Loubna",
            "Von Werra, Leandro",
            "Jaggi, Martin",
        ),
        year=2024,
        arxiv="2405.18392",
        kind="function",
        make=wsd,
    )
)
