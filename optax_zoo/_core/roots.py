"""Roots of whole arrays at the speed of memory."""

import jax
import jax.numpy as jnp
from jax import Array

from optax_zoo._core.slots import real_at_least_float32


def cube_root(x: Array) -> Array:
    """The cube root of every entry, to 3e-7 of itself (float64: 1e-15); 0, infinities and NaN are their own.

    x^(1/3) = x r^2 with r = |x|^(-1/3). Bit patterns of positive numbers are about linear in their logarithm, so a
    constant minus a third of the pattern of |x| is r to 4%; two steps (float64: three) of the iteration that cubes
    the error 1 - |x| r^3 follow. There is no division, and no guard: an infinity passes through all steps and so does
    0. The roots of subnormal numbers are too small.

    Args:
      x: real floating array; narrower ones than float32 are computed in float32.

    Returns:
      An array like `x`.
    """
    wide = real_at_least_float32(x.dtype)
    info = jnp.finfo(wide)
    pattern = jnp.int64 if info.bits == 64 else jnp.int32
    constant = (4 / 3 * (1 - info.minexp) - 0.07) * 2**info.nmant

    value = x.astype(wide)
    size = jnp.abs(value)
    bits = jax.lax.bitcast_convert_type(size, pattern)
    r = jax.lax.bitcast_convert_type((constant - bits.astype(wide) * (1 / 3)).astype(pattern), wide)
    for _ in range(3 if info.bits == 64 else 2):
        error = 1.0 - size * r * r * r
        r = r + r * error * (1 / 3 + 2 / 9 * error)
    return (value * r * r).astype(x.dtype)
