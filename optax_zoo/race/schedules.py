"""The learning rates of a race, by the names that `--schedule` takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_zoo.schedules.linear_to_zero import linear_to_zero
from optax_zoo.schedules.swa_rates import cyclic_lr, swa_lr_schedule
from optax_zoo.schedules.wsd import Cooldown, wsd

DEFAULT, CONSTANT = "decay", "constant"
WARM_UP = 0.05
COOLDOWN = 0.2

Share = Callable[[Any], Any]


class Shape(NamedTuple):
    """A schedule in words, and `make(steps, warm-up steps)` -> share of the peak as a function of t = 0, 1, ..."""

    text: str
    make: Callable[[int, int], Share]
    exception: str = ""


def _constant(steps: int, warm_up: int) -> Share:
    return lambda t: jnp.minimum(1.0, (t + 1) / warm_up)


def _warmed(shape: Callable[[int], Share]) -> Callable[[int, int], Share]:
    def make(steps: int, warm_up: int) -> Share:
        share, rising = shape(steps), _constant(steps, warm_up)
        return lambda t: rising(t) * share(t)

    return make


def _wsd(decay: Cooldown, how: str, final: float = 0.0) -> Shape:
    return Shape(
        f"the peak, then over the last fifth of the steps down {how}",
        lambda steps, warm_up: wsd(1.0, steps, min(warm_up, steps - 1), COOLDOWN, decay, final_factor=final),
    )


SCHEDULES = {
    DEFAULT: Shape(
        "a line to zero",
        _warmed(lambda steps: lambda t: 1.0 - t / steps),
        "constant for methods that average their parameters, since the average takes the place of the decay",
    ),
    CONSTANT: Shape("the peak throughout", _constant),
    "linear_to_zero": Shape(
        "warm-up from zero, then a line to zero (D2Z); unlike decay for all methods",
        lambda steps, warm_up: linear_to_zero(1.0, steps, min(warm_up, steps - 1)),
    ),
    "cosine": Shape(
        "half a cosine wave to a tenth of the peak",
        lambda steps, warm_up: optax.warmup_cosine_decay_schedule(0.0, 1.0, min(warm_up, steps - 1), steps, 0.1),
    ),
    "wsd": _wsd("sqrt", "to zero like 1 - sqrt(x)"),
    "wsd_linear": _wsd("linear", "to zero like 1 - x"),
    "wsd_cosine": _wsd("cosine", "to zero on half a cosine wave"),
    "wsd_mirror_cosine": _wsd("mirror_cosine", "to zero on half a cosine wave mirrored at 1 - x"),
    "wsd_square": _wsd("square", "to zero like 1 - x^2"),
    "wsd_exp": _wsd("exp", "to a hundredth of it, exponentially", 0.01),
    "swa": Shape(
        "the peak for three eighths of the steps, then a line to a fifth of it, reached before with_swa collects",
        _warmed(lambda steps: swa_lr_schedule(1.0, 0.2, 0.75 * steps)),
    ),
    "cyclic": Shape(
        "ten cycles, each a line from the peak to a hundredth of it",
        _warmed(lambda steps: cyclic_lr(1.0, 0.01, max(1, steps // 10))),
    ),
}


def described(*kinds: str) -> str:
    """One sentence about schedules."""
    texts = [f"{kind}: {SCHEDULES[kind].text}" for kind in kinds if kind in SCHEDULES]
    return f"Learning rate, after a warm-up over the first {100 * WARM_UP:g} % of the steps: {'; '.join(texts)}."


def schedule(kind: str, learning_rate: jax.Array, steps: int, averages: bool) -> optax.Schedule:
    """One of `SCHEDULES` around a peak of `learning_rate`; `averages` says whether the method averages."""
    kind = CONSTANT if kind == DEFAULT and averages else kind
    share = SCHEDULES[kind].make(steps, max(1, round(WARM_UP * steps)))

    def rate(count: ArrayLike) -> jax.Array:
        dtype = learning_rate.dtype
        return learning_rate * jnp.asarray(share(jnp.asarray(count, dtype)), dtype)

    return rate
