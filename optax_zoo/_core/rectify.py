"""RAdam's rectification of the adaptive step size (Liu et al., 2019, arXiv:1908.03265, Algorithm 2)."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from optax_zoo._core.hyper import Scalar, debias, log


def rectification(b2: Scalar, t: Array, threshold: float = 4.0) -> tuple[Array, Array]:
    """The variance rectification r_t, and whether the second moment can be relied on yet.

    rho_inf = 2 / (1 - b2) - 1, rho_t = rho_inf - 2 t b2**t / (1 - b2**t),
    r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t)).

    rho_t is a difference of large numbers; the same is 1 - u(L) + t u(t L) with L = -log b2 and
    u(x) = 2 / x - 2 / (exp(x) - 1), which float32 can hold.

    Args:
      b2: decay of the second moment, in [0, 1).
      t: number of the step being taken, from 1; floating scalar.
      threshold: it is reliable where rho_t > 4 (the paper) and rho_t >= this (5 in later code).

    Returns:
      (r_t, a bool scalar); r_t is meaningless where the second is False.
    """
    rate = -jnp.asarray(log(b2), t.dtype)
    start = 1.0 - _tail(rate)
    rho, rho_inf = start + t * _tail(t * rate), start + 2.0 / rate
    reliable = (rho > 4.0) & (rho >= threshold)
    rho = jnp.where(reliable, rho, 5.0)
    rho_inf = jnp.maximum(rho_inf, rho)
    ratio = (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
    return jnp.sqrt(ratio), reliable


def rectified_scalars(h: Any, degenerated_to_sgd: bool) -> dict[str, Array]:
    """The step's scalars that `rectified` needs, from h.b1, h.b2 and h.t.

    Args:
      h: the step's hyper-parameters.
      degenerated_to_sgd: step along the first moment while rho_t < 5; otherwise do not move.
    """
    bias1, bias2 = debias(h.b1, h.t), debias(h.b2, h.t)
    factor, active = rectification(h.b2, h.t, threshold=5.0)
    return {
        "gain": factor * jnp.sqrt(bias2) / bias1,
        "fallback": float(degenerated_to_sgd) / bias1,
        "active": active,
    }


def rectified(m: Array, v: Array, h: Any) -> Array:
    """r_t sqrt(bias2) / bias1 * m / (sqrt(v) + eps) from rho_t >= 5 on, before m / bias1 or 0."""
    return m * jnp.where(h.active, h.gain / (jnp.sqrt(v) + h.eps), h.fallback)


def _tail(x: Array) -> Array:
    """2 / x - 2 / (exp(x) - 1) for x > 0."""
    small = jnp.minimum(x, 0.5)
    squared = small * small
    series = 1 / 6 - squared * (1 / 360 - squared * (1 / 15120 - squared * (1 / 604800 - squared / 23950080)))
    large = jnp.maximum(x, 0.5)
    return jnp.where(x < 0.5, 1.0 - small * series, 2.0 / large - 2.0 / jnp.expm1(large))
