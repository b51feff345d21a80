"""Adam with model exponential moving average is effective for nonconvex optimization.

Kwangjun Ahn, Ashok Cutkosky, 2024, arXiv:2405.18199; theory alone in arXiv:2411.07061 and arXiv:2602.08372.
Adam whose steps are clipped coordinate by coordinate is an online learner that discounts the past; with a step scaled
by one random number and the moving average of the weights as its answer it finds stationary points at the optimal rate.

Differs from the authors' code: there is none. The coordinate-wise clip was read in a summary of the paper and b2 = b1^2
derived from the discounted learner, not read in the paper's own box: UNVERIFIED.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.hyper import RANGES, ScalarOrSchedule, abs_sq, check_range, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, wide_zeros
from optax_zoo.adaptive.random_scaling import draw
from optax_zoo.averaging.ema import with_ema


class ClippedAdamState(NamedTuple):
    """Discounted sums of what was seen."""

    count: Array  # steps taken
    g_sum: PerParameter  # of gradients, n
    square_sum: PerParameter  # of squares, q


@method
def clipped_adam_ema(
    clip: ScalarOrSchedule,
    b: ScalarOrSchedule = 0.99,
    *,
    ema_decay: ScalarOrSchedule | None = None,
    random_scaling: bool = False,
    seed: int | None = None,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Adam with clipped steps and the average of its weights (arXiv:2405.18199).

    With n = sum_s b^(t-s) g_s and q = sum_s b^(2(t-s)) g_s^2 a coordinate moves by
    z = -clip n / sqrt(q), or by `clip` where that is longer. This is Adam with the learning rate `clip`, b1 = b,
    b2 = b^2, without bias correction and eps. Evaluate `optax_zoo.eval_params(opt_state, params)`, the mean of the
    points after each step under weights that fall by `ema_decay` a step.

    Args:
      clip: D >= 0, the longest step of a coordinate; of order (1 - b) sqrt(eps) in the theory.
      b: in [0, 1); 1 - b is of order eps^2 in the theory.
      ema_decay: of the average, in [0, 1]; None: b.
      random_scaling: multiplies each step, for the whole tree, by a random number from Exp(1): the analysed version.
      seed: of the scales, >= 0; `random_scaling` needs it.
      accumulator_dtype: dtype of the average, or the parameter's own where that is wider.

    Returns:
      The optimizer, which needs params; three numbers of state per parameter. Its updates must not be rescaled.

    Raises:
      ValueError: a number out of its range, or `random_scaling` without `seed`; in `update`, params are missing.
    """
    if seed is not None:
        number("seed", seed, RANGES["seed"])
    elif random_scaling:
        raise ValueError(f"{speaker()}: random_scaling=True needs seed")
    if ema_decay is not None:
        check_range("ema_decay", ema_decay, "[0, 1]")

    def step(h: Any, s: ClippedAdamState) -> dict[str, Any]:
        scale = 1.0 if seed is None or not random_scaling else draw("exponential", seed, h.count)
        return {"rate": h.clip * scale, "b_squared": h.b * h.b}

    @leafwise(
        ClippedAdamState,
        hyper={"clip": clip, "b": b},
        ranges={"clip": "[0, inf)", "b": "[0, 1)"},
        step=step,
        g_sum=wide_zeros(),
        square_sum=squares(),
    )
    def rule(g: Array, s: ClippedAdamState, h: Any) -> tuple[Array, ClippedAdamState]:
        n = h.b * s.g_sum + g
        q = h.b_squared * s.square_sum + abs_sq(g)
        longest = jnp.maximum(jnp.sqrt(q), jnp.abs(n))
        u = -h.rate * n / jnp.where(longest > 0, longest, 1)
        return u, s._replace(g_sum=n, square_sum=q)

    decay = b if ema_decay is None else ema_decay
    return with_ema(rule, decay, init="zeros", debias=True, accumulator_dtype=accumulator_dtype)


PAPER = register(
    Paper(
        name="clipped_adam_ema",
        title="Adam with model exponential moving average is effective for nonconvex optimization",
        authors=("Ahn, Kwangjun", "Cutkosky, Ashok"),
        year=2024,
        arxiv="2405.18199",
        make=clipped_adam_ema,
        states=(ClippedAdamState,),
        needs=("params",),
        floats_per_parameter=3,
    )
)
