"""Euclidean norms of any size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from optax_zoo._core.blocks import Block
from optax_zoo._core.hyper import abs_sq


def norm(x: Array, axes: Sequence[int] | int, block: Block | None = None) -> Array:
    """sqrt(sum |x|^2) over some axes, which stay with size 1, real; nothing overflows or vanishes on the way.

    The derivative where it is 0 is 0. With a `block`, `x` is one device's part of what the norm is of.
    """
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if block is None:
        block = Block(x.shape, ((),) * x.ndim)
    top = divisible(block.largest(jnp.abs(x), axes))
    return top * root(block.sum(abs_sq(x / top.astype(x.dtype)), axes))


def divisible(top: Array) -> Array:
    """Sizes of largest entries as numbers to divide by: 1 for 0, infinities and NaN. Constants to derivatives."""
    top = jax.lax.stop_gradient(top)
    return jnp.where((top > 0) & jnp.isfinite(top), top, jnp.ones_like(top))


def root(x: Array) -> Array:
    """The square root, whose derivative at 0 is 0."""
    zero = x == 0
    return jnp.where(zero, jnp.zeros_like(x), jnp.sqrt(jnp.where(zero, jnp.ones_like(x), x)))
