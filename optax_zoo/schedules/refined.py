"""Optimal Linear Decay Learning Rate Schedules and Further Refinements.

Aaron Defazio, Ashok Cutkosky, Harsh Mehta, Konstantin Mishchenko, 2023, arXiv:2310.07831, Algorithm 2 and Theorem 3.
From the gradient norms of one run, the schedule that the theory would have chosen for it: a warm-up, and a fall to
zero, both found rather than set.

Differs from the authors' code: nothing, but that the largest factor is 1 unless told otherwise; theirs are divided by
the last weight.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from optax_zoo._core.hyper import abs_sq, choice, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree
from optax_zoo.schedules._count import floating

Norm = Literal["l2", "l1"]


@method
def refined_schedule(
    grad_norms: ArrayLike,
    *,
    weights: Norm | ArrayLike = "l2",
    tau: float = 0.1,
    normalize: Literal["max"] | None = "max",
) -> np.ndarray:
    """Learning-rate factors from the gradient norms G_1 ... G_n of a run (arXiv:2310.07831, Algorithm 2); on the host.

    eta_i = w_i * (w_{i+1} + ... + w_n), of the norms after a median filter; eta_n = 0. Constant norms give the linear
    decay to zero.

    Args:
      grad_norms: shape (n,), positive; `record_gradient_norms` keeps them.
      weights: w from the filtered norms: "l2" is G^-2, for SGD and l2 norms; "l1" is G^-1, for Adam and l1 norms; or
        the weights themselves, shape (n,).
      tau: width of the median filter as a share of n, in [0, 1]; 0: no filter.
      normalize: "max" divides by the largest factor; None: by the last weight, as the authors' code does.

    Returns:
      float64, shape (n,). `table_schedule` makes a schedule of it.

    Raises:
      ValueError: norms that are not finite and positive, too few of them, or an argument out of its range.
    """
    norms = np.asarray(grad_norms, np.float64)
    if norms.ndim != 1 or norms.size < 2:
        raise ValueError(f"refined_schedule: grad_norms must have shape (n,) with n >= 2, got {norms.shape}")
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError("refined_schedule: grad_norms must be finite and above 0")
    if normalize not in ("max", None):
        raise ValueError(f"refined_schedule: normalize must be 'max' or None, got {normalize!r}")
    smooth = median_filtered(norms, float(number("tau", tau, "[0, 1]")))
    if isinstance(weights, str):
        choice("weights", weights, Norm)
        w = smooth ** (-2 if weights == "l2" else -1)
    else:
        w = np.asarray(weights, np.float64)
        if w.shape != norms.shape:
            raise ValueError(f"refined_schedule: weights must have shape {norms.shape}, got {w.shape}")
    tails = np.append(np.cumsum(w[:0:-1])[::-1], 0.0)
    return w * tails / (np.max(w * tails) if normalize else w[-1])


def median_filtered(norms: np.ndarray, tau: float) -> np.ndarray:
    """The running median over 2 * (int(tau * n) // 2) + 1 entries; both ends mirrored or repeated as the authors do."""
    width = 2 * (int(tau * norms.size) // 2) + 1
    padded = np.pad(norms, (0, min(2 * width, norms.size - 1)), mode="reflect")
    padded = np.pad(padded, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)[: norms.size]


@method
def table_schedule(factors: ArrayLike, peak_value: float = 1.0) -> optax.Schedule:
    """peak_value * factors[count]; the last factor after the end.

    Args:
      factors: shape (n,), such as `refined_schedule` returns.
      peak_value: >= 0.
    """
    table = floating(np.asarray(factors)) * number("peak_value", peak_value, "[0, inf)")
    if table.ndim != 1 or not table.size:
        raise ValueError(f"table_schedule: factors must have shape (n,) with n >= 1, got {table.shape}")
    return lambda count: table[jnp.minimum(count, table.size - 1)]


class GradientNormsState(NamedTuple):
    """The norm of the gradient of every step."""

    count: Array  # steps taken
    norms: Array  # one a step


@method
def record_gradient_norms(steps: int, norm: Norm = "l2") -> optax.GradientTransformationExtraArgs:
    """Keeps the norms of the gradients of the first `steps` steps; passes gradients through.

    Args:
      steps: how many, >= 1.
      norm: "l2", or "l1", the sum of magnitudes; over the whole tree.

    Returns:
      A transformation, to be put first in a chain. `recorded_gradient_norms` reads its state.

    Raises:
      ValueError: `steps` below 1 or an unknown `norm`.
    """
    choice("norm", norm, Norm)
    number("steps", steps, "[1, inf)")

    def sums(g: Array, s: GradientNormsState, h: Any) -> dict[str, Array]:
        return {"total": jnp.sum(abs_sq(g) if norm == "l2" else jnp.abs(g))}

    def step(h: Any, s: GradientNormsState) -> dict[str, Array]:
        now = floating(jnp.sqrt(h.total) if norm == "l2" else h.total)
        return {"norms": s.norms.at[h.count].set(now, mode="drop")}

    @leafwise(GradientNormsState, sums=sums, step=step, norms=lambda: jnp.zeros(int(steps)))
    def rule(g: Array, s: GradientNormsState, h: Any) -> tuple[Array, GradientNormsState]:
        return g, s

    return rule


def recorded_gradient_norms(opt_state: PyTree) -> np.ndarray:
    """The norms recorded so far, shape (steps taken,), by the first `record_gradient_norms` in an optimizer state.

    Raises:
      ValueError: there is none.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, GradientNormsState))
    found = [node for node in nodes if isinstance(node, GradientNormsState)]
    if not found:
        raise ValueError("recorded_gradient_norms: the state has no record_gradient_norms")
    return np.asarray(found[0].norms[: int(found[0].count)])


PAPER = register(
    Paper(
        name="record_gradient_norms",
        title="Optimal Linear Decay Learning Rate Schedules and Further Refinements",
        authors=("Defazio, Aaron", "Cutkosky, Ashok", "Mehta, Harsh", "Mishchenko, Konstantin"),
        year=2023,
        arxiv="2310.07831",
        algorithm="Algorithm 2",
        kind="transform",
        make=record_gradient_norms,
        states=(GradientNormsState,),
        elementwise=False,
        example={"steps": 100},
    )
)

REFINED = register(
    Paper(
        name="refined_schedule",
        title=PAPER.title,
        authors=PAPER.authors,
        year=PAPER.year,
        arxiv=PAPER.arxiv,
        algorithm=PAPER.algorithm,
        kind="function",
        make=refined_schedule,
    )
)
