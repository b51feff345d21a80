"""RAdam's rectification of the adaptive step size (Liu et al., 2019, arXiv:1908.03265, Algorithm 2)."""

import jax.numpy as jnp
from jax import Array

from optax_zoo._core.hyper import Decay, Scalar, debias, split_decay


def rectification(b2: Scalar | Decay, t: Array, threshold: float) -> tuple[Array, Array]:
    """The factor r_t and whether it applies, rho_t > 4 and rho_t >= `threshold`; r_t is 0 where it does not.

    rho_inf = 2/(1-b2) - 1, rho_t = rho_inf - 2 t b2^t/(1-b2^t),
    r_t = sqrt((rho_t-4)(rho_t-2) rho_inf / ((rho_inf-4)(rho_inf-2) rho_t)).

    Args:
      b2: decay of the second moment, above 0.6 (rho_inf > 4) for the factor ever to apply.
      t: number of the step being taken, from 1; floating scalar.
      threshold: RAdam's paper has rho_t > 4, later code rho_t >= 5.
    """
    rho_inf = 2.0 / split_decay(b2).take - 1.0
    bias = debias(b2, t)
    rho = rho_inf - 2.0 * t * (1.0 - bias) / bias
    active = (rho > 4.0) & (rho >= threshold)
    safe = jnp.where(active, rho, 5.0)
    spread = (rho_inf - 4.0) * (rho_inf - 2.0)
    factor = jnp.sqrt(jnp.maximum((safe - 4.0) * (safe - 2.0) * rho_inf / (spread * safe), 0.0))
    return jnp.where(active, factor, 0.0), active
