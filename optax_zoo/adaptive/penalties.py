"""Nonconvex penalties that select variables without shrinking the large ones, and their proximal maps.

SCAD: Jianqing Fan, Runze Li, 2001, doi:10.1198/016214501753382273. MCP: Cun-Hui Zhang, 2010, arXiv:1002.4734. Both are
lam |x| near 0 and constant for large |x|, and act entry by entry on real arrays.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from optax_zoo._core.hyper import Scalar, number
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.slots import at_least_float32


@method
def scad_penalty(x: ArrayLike, lam: Scalar, a: Scalar = 3.7) -> Array:
    """The smoothly clipped absolute deviation.

    lam |x| for |x| <= lam, (2 a lam |x| - x^2 - lam^2) / (2 (a - 1)) up to a lam, lam^2 (a + 1) / 2 beyond.

    Args:
      x: real floating array.
      lam: strength, >= 0.
      a: > 2; where it becomes constant, in units of lam.

    Returns:
      The penalty of every entry, in the dtype of `x`.

    Raises:
      TypeError: `x` is not real and floating.
      ValueError: a number out of its range.
    """

    def penalty(x: Array, lam: Array, a: Array) -> Array:
        size = jnp.abs(x)
        bent = jnp.clip(size, lam, a * lam)
        return lam * jnp.minimum(size, lam) + (bent - lam) * (2 * a * lam - bent - lam) / (2 * (a - 1))

    return _entrywise(penalty, x, number("lam", lam, "[0, inf)"), number("a", a, "(2, inf)"))


@method
def mcp_penalty(x: ArrayLike, lam: Scalar, gamma: Scalar = 2.0) -> Array:
    """The minimax concave penalty: lam |x| - x^2 / (2 gamma) for |x| <= gamma lam, gamma lam^2 / 2 beyond.

    Args:
      x: real floating array.
      lam: strength, >= 0.
      gamma: > 0; where it becomes constant, in units of lam.

    Returns:
      The penalty of every entry, in the dtype of `x`.

    Raises:
      TypeError: `x` is not real and floating.
      ValueError: a number out of its range.
    """

    def penalty(x: Array, lam: Array, gamma: Array) -> Array:
        size = jnp.minimum(jnp.abs(x), gamma * lam)
        return size * (lam - size / (2 * gamma))

    return _entrywise(penalty, x, number("lam", lam, "[0, inf)"), number("gamma", gamma, "(0, inf)"))


@method
def prox_l1(x: ArrayLike, threshold: Scalar) -> Array:
    """Soft thresholding, argmin over u of (u - x)^2 / 2 + threshold |u|: sign(x) max(|x| - threshold, 0).

    Args:
      x: real floating array.
      threshold: >= 0.

    Returns:
      An array like `x`, with exact zeros where |x| <= threshold.

    Raises:
      TypeError: `x` is not real and floating.
      ValueError: a number out of its range.
    """
    return _entrywise(soft, x, number("threshold", threshold, "[0, inf)"))


@method
def prox_scad(x: ArrayLike, lam: Scalar, a: Scalar = 3.7, step: Scalar = 1.0) -> Array:
    """The proximal map of SCAD, argmin over u of (u - x)^2 / (2 step) + scad_penalty(u, lam, a).

    Args:
      x: real floating array.
      lam: strength, >= 0.
      a: > 2, and > 1 + step, so that there is one minimizer.
      step: > 0.

    Returns:
      An array like `x`, with exact zeros where |x| <= step * lam, and x itself where |x| >= a * lam.

    Raises:
      TypeError: `x` is not real and floating.
      ValueError: a number out of its range.
    """

    def prox(x: Array, lam: Array, a: Array, step: Array) -> Array:
        size = jnp.abs(x)
        bent = ((a - 1) * x - jnp.sign(x) * (a * step * lam)) / (a - 1 - step)
        return jnp.where(size <= (1 + step) * lam, soft(x, step * lam), jnp.where(size <= a * lam, bent, x))

    lam, step = number("lam", lam, "[0, inf)"), number("step", step, "(0, inf)")
    least = max(2.0, 1.0 + step) if isinstance(step, int | float) else 2.0
    return _entrywise(prox, x, lam, number("a", a, f"({least}, inf)"), step)


@method
def prox_mcp(x: ArrayLike, lam: Scalar, gamma: Scalar = 2.0, step: Scalar = 1.0) -> Array:
    """The proximal map of MCP, argmin over u of (u - x)^2 / (2 step) + mcp_penalty(u, lam, gamma).

    Args:
      x: real floating array.
      lam: strength, >= 0.
      gamma: > step, so that there is one minimizer.
      step: > 0.

    Returns:
      An array like `x`, with exact zeros where |x| <= step * lam, and x itself where |x| >= gamma * lam.

    Raises:
      TypeError: `x` is not real and floating.
      ValueError: a number out of its range.
    """

    def prox(x: Array, lam: Array, gamma: Array, step: Array) -> Array:
        return jnp.where(jnp.abs(x) <= gamma * lam, soft(x, step * lam) / (1 - step / gamma), x)

    lam, step = number("lam", lam, "[0, inf)"), number("step", step, "(0, inf)")
    least = float(step) if isinstance(step, int | float) else 0.0
    return _entrywise(prox, x, lam, number("gamma", gamma, f"({least}, inf)"), step)


def soft(x: Array, threshold: Scalar) -> Array:
    """`prox_l1` inside a rule."""
    return x - jnp.clip(x, -threshold, threshold)


def _entrywise(formula: Callable[..., Array], x: ArrayLike, *scalars: Scalar) -> Array:
    """The formula in float32 or better, its result in the dtype of `x`."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{speaker()}: x must be a real floating array, got {x.dtype}")
    wide = at_least_float32(x.dtype)
    return formula(x.astype(wide), *(jnp.asarray(scalar, wide) for scalar in scalars)).astype(x.dtype)
