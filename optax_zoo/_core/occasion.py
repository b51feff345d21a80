"""What is dear and seldom due is computed only when it is due."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

T = TypeVar("T")


def replaced(old: T, now: Array, make: Callable[[], T]) -> T:
    """`make()` if `now`, else `old`, a tree of the same shapes and dtypes.

    A loop of at most one turn: under vmap it does not turn where no member needs it, while `lax.cond` takes both ways.
    It has no derivative in reverse mode: what it reads must be constant, see `lax.stop_gradient`.
    """
    closed, read = jax.closure_convert(make)

    def turn(carry: tuple[Array, T]) -> tuple[Array, T]:
        # Tied to the turn, or XLA would do the work ahead of the loop.
        tied = [jax.lax.optimization_barrier((carry[0], array))[1] for array in read]
        return jnp.zeros_like(carry[0]), closed(*tied)

    return jax.lax.while_loop(lambda carry: carry[0], turn, (now, old))[1]
