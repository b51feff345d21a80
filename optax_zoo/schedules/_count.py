"""What schedules of the 0-based step count share."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from optax_zoo._core.hyper import Scalar, as_scalar, scalar_dtype
from optax_zoo._core.naming import speaker


def floating(count: Any) -> Array:
    """A count, or another number, as a floating scalar: float32, or float64 where x64 is enabled."""
    return jnp.asarray(count, scalar_dtype())


def between(first: Any, last: Scalar, weight: Array) -> Array:
    """From `first` at weight 0 to `last` at weight 1."""
    return (1.0 - weight) * as_scalar(first) + weight * as_scalar(last)


def ordered(first: str, early: Scalar, second: str, late: Scalar) -> None:
    """Raises a ValueError in one sentence where both numbers are concrete and `early` is not below `late`."""
    if not isinstance(early, Tracer) and not isinstance(late, Tracer) and not early < late:
        raise ValueError(f"{speaker()}: {first} must be below {second}, got {early} and {late}")
