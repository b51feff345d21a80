"""Model Fusion via Optimal Transport.

Sidak Pal Singh, Martin Jaggi, 2019, arXiv:1910.05653, Algorithm 1.
Networks number their neurons at will; each layer's are matched with the other network's before they are averaged.

Differs from the authors' code: Sinkhorn's iteration runs on logarithms, so that small `reg` cannot underflow; layers
may differ in width with exact plans too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from numpy.typing import NDArray

from optax_zoo._core.hyper import Scalar, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register

Matrix = NDArray[np.floating[Any]]
Costs = Callable[[int, Matrix, Matrix], Any]

_ITERATIONS, _CHECK_EVERY, _TOLERANCE = 1000, 10, 1e-9


@method
def ot_fusion(
    layers_a: Sequence[Any],
    layers_b: Sequence[Any],
    *,
    exact: bool = True,
    reg: Scalar = 1e-2,
    squared: bool = False,
    normalize_weights: bool = False,
    ensemble_step: Scalar = 0.5,
    align_last: bool = True,
    eps: Scalar = 1e-7,
    costs: Costs | None = None,
) -> list[Array]:
    """Aligns the neurons of network a with those of b and averages both (arXiv:1910.05653).

    For feed-forward networks without biases, normalisation and skip connections. It runs on the host, in float64.

    Args:
      layers_a: kernels from input to output, of shape (in, out) or (..., in, out) of a convolution, channels last.
        A dense kernel after a convolution takes its flattened output, with the channels varying fastest.
      layers_b: those of the other network; hidden layers may differ in width.
      exact: the plan of least cost; with equal widths a permutation. False: Sinkhorn's smooth plan.
      reg: strength > 0 of the smoothing in units of the cost; at most 1000 iterations.
      squared: the cost is the squared distance.
      normalize_weights: neurons are compared at unit norm.
      ensemble_step: share of b in the result, in [0, 1].
      align_last: the outputs are matched too, as the authors do by default. False is right where both networks mean
        the same class by the same output.
      eps: added to the mass of a neuron that the plan is divided by.
      costs: costs(layer, aligned, b) -> cost of matching each neuron of a (rows) with each of b (columns), for
        example from activations; it is given the kernels with one neuron a row, the inputs of a's aligned already.
        None: the distance of these rows.

    Returns:
      The kernels of the fused network, shaped like b's, in the dtypes of a's.

    Raises:
      TypeError: under `jax.jit`, or kernels that are no real floats.
      ValueError: kernels that do not fit, NaN in one (named), or a number out of its range.
    """
    reg, eps = float(number("reg", reg, "(0, inf)")), float(number("eps", eps, "[0, inf)"))
    step = float(number("ensemble_step", ensemble_step, "[0, 1]"))
    kernels_a, kernels_b = _kernels("layers_a", layers_a), _kernels("layers_b", layers_b)
    if len(kernels_a) != len(kernels_b):
        raise ValueError(f"ot_fusion: layers_a has {len(kernels_a)} layers and layers_b has {len(kernels_b)}")
    plan: Matrix | None = None
    fused = []
    for i, (a, b) in enumerate(zip(kernels_a, kernels_b, strict=True)):
        aligned, rows = _with_aligned_inputs(i, a, b, plan), b.reshape(-1, b.shape[-1]).T
        if align_last or i < len(kernels_a) - 1:
            cost = _distances(aligned, rows, squared, normalize_weights) if costs is None else costs(i, aligned, rows)
            cost = _checked_cost(i, cost, (len(aligned), len(rows)))
            plan = (_exact_plan(cost) if exact else _sinkhorn(cost, reg)) / (1.0 / len(rows) + eps)
            aligned = plan.T @ aligned
        elif len(aligned) != len(rows):
            raise ValueError(f"ot_fusion: the last layers have {len(aligned)} and {len(rows)} outputs; align_last=True")
        merged = (1.0 - step) * aligned + step * rows
        dtype = jax.dtypes.canonicalize_dtype(layers_a[i].dtype)
        fused.append(jnp.asarray(merged.T.reshape(b.shape).astype(dtype)))
    return fused


def _kernels(name: str, layers: Sequence[Any]) -> list[Matrix]:
    if not isinstance(layers, Sequence):
        raise TypeError(
            f"ot_fusion: {name} must be a list of kernels from input to output, got {type(layers).__name__}"
        )
    kernels = []
    for i, kernel in enumerate(layers):
        if isinstance(kernel, Tracer):
            raise TypeError("ot_fusion: solves for plans on the host; call it outside of jax.jit")
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise TypeError(f"ot_fusion: {name}[{i}] must be real and floating, got {kernel.dtype}")
        if kernel.ndim < 2:
            raise ValueError(f"ot_fusion: {name}[{i}] must be a kernel of two or more axes, got shape {kernel.shape}")
        kernels.append(np.asarray(kernel, np.float64))
        if np.isnan(kernels[-1]).any():
            raise ValueError(f"ot_fusion: {name}[{i}] has NaN")
    return kernels


def _with_aligned_inputs(i: int, a: Matrix, b: Matrix, plan: Matrix | None) -> Matrix:
    """Kernel a with one neuron a row, its inputs in the order of b's; `plan` matches the layer below."""
    inputs, outputs = a.shape[-2:]
    width, width_b = (inputs, b.shape[-2]) if plan is None else plan.shape
    blocks = inputs // width if a.ndim == 2 else 1
    fits = inputs == blocks * width and b.shape[-2] == blocks * width_b
    if not fits or a.shape[:-2] != b.shape[:-2] or (plan is None and inputs != width_b):
        raise ValueError(
            f"ot_fusion: kernels {i}, of shapes {a.shape} and {b.shape}, do not take the {width} and {width_b}"
            " outputs of the layers below"
        )
    positions = a.reshape(-1, width, outputs)
    if plan is not None:
        positions = plan.T @ positions
    return positions.reshape(-1, outputs).T


def _distances(a: Matrix, b: Matrix, squared: bool, normalize: bool) -> Matrix:
    """Euclidean distances of all rows of a from all rows of b."""
    if normalize:
        a, b = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-9) for x in (a, b))
    from scipy.spatial.distance import cdist

    return cdist(a, b, "sqeuclidean" if squared else "euclidean")


def _checked_cost(i: int, cost: Any, shape: tuple[int, int]) -> Matrix:
    cost = np.asarray(cost, np.float64)
    if cost.shape != shape or not np.isfinite(cost).all():
        raise ValueError(f"ot_fusion: the costs of layer {i} must be finite and of shape {shape}, got {cost.shape}")
    return cost


def _exact_plan(cost: Matrix) -> Matrix:
    """The plan of least cost between uniform masses."""
    from scipy import optimize, sparse

    n, m = cost.shape
    if n == m:
        plan = np.zeros((n, m))
        plan[optimize.linear_sum_assignment(cost)] = 1.0 / n
        return plan
    sums = sparse.vstack([sparse.kron(sparse.eye(n), np.ones((1, m))), sparse.kron(np.ones((1, n)), sparse.eye(m))])
    masses = np.concatenate([np.full(n, 1.0 / n), np.full(m, 1.0 / m)])
    return optimize.linprog(cost.ravel(), A_eq=sums, b_eq=masses, method="highs").x.reshape(n, m)


def _sinkhorn(cost: Matrix, reg: float) -> Matrix:
    """The plan of least cost minus `reg` times its entropy between uniform masses."""
    from scipy.special import logsumexp

    n, m = cost.shape
    log_k = -cost / reg
    log_u, log_v = np.full((n, 1), -np.log(n)), np.full((1, m), -np.log(m))
    for i in range(_ITERATIONS):
        log_v = -np.log(m) - logsumexp(log_u + log_k, axis=0, keepdims=True)
        log_u = -np.log(n) - logsumexp(log_k + log_v, axis=1, keepdims=True)
        if i % _CHECK_EVERY == 0:
            masses = np.exp(log_u + log_k + log_v).sum(axis=0)
            if np.linalg.norm(masses - 1.0 / m) < _TOLERANCE:
                break
    return np.exp(log_u + log_k + log_v)


PAPER = register(
    Paper(
        name="ot_fusion",
        title="Model Fusion via Optimal Transport",
        authors=("Singh, Sidak Pal", "Jaggi, Martin"),
        year=2019,
        arxiv="1910.05653",
        algorithm="Algorithm 1",
        kind="merge",
        make=ot_fusion,
    )
)
