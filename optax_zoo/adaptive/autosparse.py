"""AutoSparse: Towards Automated Sparse Training of Deep Neural Networks.

Abhisek Kundu, Naveen K. Mellempudi, Dharma Teja Vooturi, Bharat Kaul, Pradeep Dubey, 2023, arXiv:2304.06941.
Weights below a learned threshold are pruned in the forward pass and still get a share alpha of their gradient, so
that they may come back; alpha is annealed to 0, the plain gradient.

Differs from the authors' code: there is none. UNVERIFIED: that the paper means alpha0 * decay(i) (a third-party port
multiplies cumulatively), and that its presets are that port's: alpha0 = 0.75, logits that start at -5, and 0 from
nine tenths of the training on.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from optax_zoo._core.hyper import Scalar, check_range, choice, number, scalar_dtype
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import widest

Kind = Literal["cosine_sigmoid", "cosine", "sigmoid"]


@method
def autosparse_weight(w: Array, threshold_logit: ArrayLike, alpha: Scalar) -> Array:
    """sign(w) relu(|w| - sigmoid(threshold_logit)), whose pruned entries get alpha times their gradient.

    Call it on the weights in the forward pass, and train `w` and `threshold_logit` with any optimizer:

        kernel = autosparse_weight(params["kernel"], params["logit"], schedule(step))

    Args:
      w: weights, of any shape, real.
      threshold_logit: s, where the threshold is sigmoid(s) in (0, 1); its shape broadcasts to that of `w`: () for a
        layer, (1, n) for the columns of a matrix, or the shape of `w`.
      alpha: in [0, 1]; 1 is the straight-through estimator, 0 the plain gradient, with which pruned weights stay so.

    Returns:
      The sparse weights, in the shape and dtype of `w`.

    Raises:
      ValueError: `alpha` is out of its range, or the shapes do not broadcast.
      TypeError: `w` or `threshold_logit` is not real floating.
    """
    check_range("alpha", alpha, "[0, 1]")
    s = jnp.asarray(threshold_logit)
    for name, x in (("w", w), ("threshold_logit", s)):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(f"{speaker()}: {name} must be real floating, got {jnp.result_type(x)}")
    if s.ndim > w.ndim or any(a not in (1, b) for a, b in zip(s.shape[::-1], w.shape[::-1], strict=False)):
        raise ValueError(f"{speaker()}: threshold_logit of shape {s.shape} does not broadcast to w's {w.shape}")
    wide = widest(jnp.float32, w.dtype, s.dtype)
    lifted = w.astype(wide)
    sign = jnp.where(lifted < 0, -1.0, 1.0).astype(wide)
    distance = sign * lifted - jnp.broadcast_to(jax.nn.sigmoid(s.astype(wide)), w.shape)
    return (sign * _annealed_relu(distance, jnp.asarray(alpha, wide))).astype(w.dtype)


@method
def gradient_annealing_schedule(
    alpha0: Scalar, total_steps: int, kind: Kind = "cosine_sigmoid"
) -> Callable[[ArrayLike], Array]:
    """alpha of the 0-based step i, falling from `alpha0` to 0: an optax schedule, for any number that may be one.

    With cos_i = (1 + cos(pi i / T)) / 2 and sig_i = 1 - sigmoid(-6 + 12 i / T), alpha is alpha0 max(cos_i, sig_i)
    while i < T and 0 from step T = `total_steps` on.

    Args:
      alpha0: in [0, 1].
      total_steps: T >= 1.
      kind: "cosine_sigmoid", or one of its two parts alone.

    Raises:
      ValueError: a number out of its range, an unknown `kind`.
    """
    choice("kind", kind, Kind)
    first, steps = number("alpha0", alpha0, "[0, 1]"), number("total_steps", total_steps, "[1, inf)")

    def schedule(count: ArrayLike) -> Array:
        part = jnp.clip(jnp.asarray(count).astype(scalar_dtype()) / steps, 0.0, 1.0)
        cosine, sigmoid = (1 + jnp.cos(jnp.pi * part)) / 2, jax.nn.sigmoid(6 - 12 * part)
        decays = {"cosine": cosine, "sigmoid": sigmoid, "cosine_sigmoid": jnp.maximum(cosine, sigmoid)}
        return jnp.where(part < 1, first * decays[kind], 0.0)

    return schedule


@jax.custom_vjp
def _annealed_relu(x: Array, alpha: Array) -> Array:
    """relu(x), whose derivative is 1 where x > 0 and alpha elsewhere."""
    del alpha
    return jax.nn.relu(x)


def _forward(x: Array, alpha: Array) -> tuple[Array, tuple[Array, Array]]:
    return jax.nn.relu(x), (x > 0, alpha)


def _backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    alive, alpha = kept
    return g * jnp.where(alive, 1.0, alpha).astype(g.dtype), jnp.zeros_like(alpha)


_annealed_relu.defvjp(_forward, _backward)


PAPER = register(
    Paper(
        name="autosparse_weight",
        title="AutoSparse: Towards Automated Sparse Training of Deep Neural Networks",
        authors=(
            "Kundu, Abhisek",
            "Mellempudi, Naveen K.",
            "Vooturi, Dharma Teja",
            "Kaul, Bharat",
            "Dubey, Pradeep",
        ),
        year=2023,
        arxiv="2304.06941",
        kind="function",
        make=autosparse_weight,
    )
)
