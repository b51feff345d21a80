"""Whether two arrays point the same way, entry by entry."""

import jax.numpy as jnp
from jax import Array


def agreement(x: Array, y: Array) -> Array:
    """The cosine between the entries of x and y, 0 where one of them is 0: for real numbers the sign of x * y.

    Of the signs, because the product of two small numbers is 0 in floating point.
    """
    return jnp.real(jnp.sign(x) * jnp.conj(jnp.sign(y)))
