"""Hyper-parameters: a number, an array (perhaps traced) or a schedule; one sentence when out of range."""

import math
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, cast, get_args

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from optax_zoo._core.naming import speaker, suggestion

Scalar: TypeAlias = float | Array
Schedule: TypeAlias = Callable[[Any], Any]
ScalarOrSchedule: TypeAlias = float | Array | Schedule

RANGES: Mapping[str, str] = {
    "learning_rate": "[0, inf)",
    "b1": "[0, 1)",
    "b2": "[0, 1)",
    "b3": "[0, 1)",
    "momentum": "[0, 1)",
    "eps": "[0, inf)",
    "eps_root": "[0, inf)",
    "weight_decay": "[0, inf)",
    "decay": "[0, 1]",
    "update_every": "[1, inf)",
    "freq": "[1, inf)",
    "start": "[0, inf)",
    "warmup_steps": "[0, inf)",
    "seed": "[0, 4294967295]",
}
"""The field's usual ranges by argument name; a method that differs passes its own."""


def structural(default: int) -> Any:
    """A default that shapes a program: as NumPy's integer, `optax.inject_hyperparams` does not make it an array."""
    return np.int64(default)


def known_integer(name: str, value: object, interval: str, unknown: type = Array) -> int:
    """`value` as Python's integer, where it shapes the state or the program.

    Raises:
      TypeError: `value` is of the type `unknown`, or no integer.
      ValueError: a number outside of `interval`, NaN included.
    """
    if isinstance(value, unknown):
        raise TypeError(
            f"{speaker()}: {name} must be known when the state is made; name it in the static_args of"
            " optax.inject_hyperparams"
        )
    refusal = TypeError(f"{speaker()}: {name} must be an integer, got {value!r}")
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Array | np.ndarray):
        raise refusal
    check_range(name, value, interval)
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError:
        raise refusal from None


class StepSchedule(optax.schedules.StatefulSchedule):
    """A schedule of the number of the step being taken, t = 1, 2, ..., as papers count.

    A plain callable is read as optax reads it, at the 0-based step count; an instance of this class at t.
    `optax.inject_hyperparams` treats it alike: its schedule state is t. `exact` may give the engine a `Decay` in
    place of a number that float32 would round.
    """

    def __init__(self, function: Schedule, text: str, exact: Schedule | None = None) -> None:
        self._function, self._text = function, text
        self.exact = exact or function

    def init(self) -> Array:
        return jnp.ones((), jnp.int32)

    def update(self, state: Array, **extra_args: Any) -> Array:
        del extra_args
        return jnp.asarray(optax.safe_increment(state))

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        del extra_args
        return self._function(state)

    def __repr__(self) -> str:
        return self._text


class Decay(NamedTuple):
    """A decay factor b together with 1 - b, for b so close to 1 that float32 cannot hold the difference."""

    keep: Scalar  # b
    take: Scalar  # 1 - b

    @classmethod
    def from_log(cls, log_b: Array) -> "Decay":
        return cls(jnp.exp(log_b), -jnp.expm1(log_b))


def split_decay(b: Scalar | Decay) -> Decay:
    """(b, 1 - b); Python numbers stay Python numbers, so their difference is exact to double precision."""
    return b if isinstance(b, Decay) else Decay(b, 1.0 - b)


def ema(average: Any, value: Any, b: Scalar | Decay) -> Any:
    """b * average + (1 - b) * value."""
    keep, take = split_decay(b)
    return keep * average + take * value


def debias(b: Scalar | Decay, t: Array) -> Array:
    """1 - b**t, accurate for b close to 1 and equal to 1 for b = 0 (t >= 1)."""
    if isinstance(b, Decay):
        return -jnp.expm1(t * jnp.log1p(-b.take))
    return -jnp.expm1(t * log(b))


def log(b: Scalar) -> Scalar:
    """log b, in double precision for Python numbers; log 0 = -inf."""
    if isinstance(b, numbers.Real):
        return math.log(b) if b > 0 else -math.inf
    return jnp.log(b)


def is_zero(value: object) -> bool:
    """Whether `value` is the Python number 0, so that what it multiplies can be left out."""
    return isinstance(value, numbers.Real) and value == 0


def scalar_dtype() -> jnp.dtype:
    """float32, or float64 where x64 is enabled: the dtype of all scalars in state."""
    return jnp.result_type(float)


def abs_sq(x: Array) -> Array:
    """|x|^2, real for complex x."""
    return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x


def number(name: str, value: ScalarOrSchedule, interval: str) -> Scalar:
    """`value`, which must be a number or an array within `interval` and not a schedule."""
    if callable(value):
        raise TypeError(f"{speaker()}: {name} must be a number here, got the schedule {value!r}")
    check_range(name, value, interval)
    return value


def choice(name: str, value: object, allowed: Any) -> None:
    """Raises a ValueError, with the closest word, when `value` is none of the words of the Literal `allowed`."""
    words = get_args(allowed)
    if value not in words:
        hint = suggestion(value, words) if isinstance(value, str) else ""
        raise ValueError(f"{speaker()}: {name} must be one of {', '.join(map(repr, words))}, got {value!r}{hint}")


def as_scalar(value: Any) -> Any:
    """Python numbers as they are; floating arrays in the scalars' dtype."""
    if isinstance(value, numbers.Real):
        return value
    value = jnp.asarray(value)
    return value.astype(scalar_dtype()) if jnp.issubdtype(value.dtype, jnp.floating) else value


def check_range(name: str, value: object, interval: str) -> None:
    """Raises a ValueError in one sentence when a concrete number lies outside `interval`, e.g. `[0, 1)`.

    Raises:
      TypeError: `value` is neither a number, an array nor a schedule.
      ValueError: `value` is concrete and outside of the interval, NaN included.
    """
    if callable(value) or isinstance(value, Decay | Tracer):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Array | np.ndarray):
        raise TypeError(f"{speaker()}: {name} must be a number, an array or a schedule, got {value!r}")
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for x in np.ravel(np.asarray(value, dtype=np.float64)):
        above = x >= low if interval[0] == "[" else x > low
        below = x <= high if interval[-1] == "]" else x < high
        if not (above and below):
            raise ValueError(f"{speaker()}: {name} must be in {interval}, got {value}")


def whole_number(name: str, value: object) -> None:
    """Raises unless `value` is a whole number from 1 on, as far as that is known.

    Raises:
      TypeError: neither a number, an array nor a schedule.
      ValueError: a concrete number below 1 or with a fraction.
    """
    check_range(name, value, "[1, inf)")
    concrete = isinstance(value, numbers.Real | Array | np.ndarray) and not isinstance(value, Tracer)
    if concrete and any(x != round(x) for x in np.ravel(np.asarray(value, np.float64))):
        raise ValueError(f"{speaker()}: {name} must be a whole number, got {value}")


def checked(values: Mapping[str, Any], ranges: Mapping[str, str]) -> dict[str, Any]:
    """The hyper-parameters of a rule, every concrete one within its range."""
    for name, value in values.items():
        check_range(name, value, ranges.get(name) or RANGES.get(name, "(-inf, inf)"))
    return {name: float(v) if isinstance(v, np.floating) else v for name, v in values.items()}


def resolve(values: Mapping[str, Any], count: Array) -> dict[str, Any]:
    """The step's values: schedules at the 0-based `count` (a `StepSchedule` at count + 1), numbers unchanged."""

    def at(value: Any) -> Any:
        if isinstance(value, StepSchedule):
            value = value.exact(count + 1)
        elif callable(value):
            value = value(count)
        return value if isinstance(value, Decay) else as_scalar(value)

    return {name: at(value) for name, value in values.items()}
