"""AdaGrad Meets Muon: Adaptive Stepsizes for Orthogonal Updates (AdaGO).

Minxin Zhang, Yuxuan Liu, Hayden Schaeffer, 2025, arXiv:2509.02981.
Muon's direction has the same size whatever the gradient's; AdaGO gives it a step from the accumulated norms of the
gradients, as AdaGrad-Norm does, one for each matrix and never below a floor.

Differs from the authors' code: none was found. That the norm is Frobenius' is UNVERIFIED, and no default of gamma, v0
and eps is known to be the paper's; weight decay is not the paper's. Deviations of the orthogonalisation as in Muon.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from optax_zoo._core.finish import Mask, decay_with_rate
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq
from optax_zoo._core.layouts import Layout, Matrices, uncut
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.matrix import Method
from optax_zoo._core.naming import method as public
from optax_zoo._core.norms import root
from optax_zoo._core.orthogonalizer import Orthogonalizer
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.quintics import NS_STEPS, Coefficients
from optax_zoo._core.sharing import ShardOver
from optax_zoo._core.slots import PerLeaf, PerParameter, Statistic, real_at_least_float32, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import Choice, DimensionNumbers
from optax_zoo.matrix._auxiliary import HIDDEN, Adam, with_auxiliary_adam
from optax_zoo.matrix._momentum import accumulated, orthogonalizing


class AdagoState(NamedTuple):
    """State of `adago` on matrices."""

    count: Array  # steps taken
    momentum: PerParameter  # average of gradients
    acc: PerLeaf  # v^2 beside v0^2
    alpha: PerLeaf  # last step size


class _Steps(NamedTuple):
    count: Array  # steps taken
    alpha: PerLeaf  # of each matrix


def _no_numbers(leaf: Array, *, axes: Layout) -> Array:
    return jnp.zeros(axes.per_matrix(leaf.shape), real_at_least_float32(leaf.dtype))


def _adago(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule,
    gamma: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    v0: ScalarOrSchedule,
    nesterov: bool,
    mu_dtype: DTypeLike | None,
    orthogonalize: Orthogonalizer,
) -> optax.GradientTransformationExtraArgs:
    """alpha O: an ascent direction with its step size."""
    axes = {"axes": orthogonalize.axes}

    @leafwise(
        AdagoState,
        hyper={"learning_rate": learning_rate, "momentum": momentum, "gamma": gamma, "eps": eps, "v0": v0},
        ranges={"gamma": "(0, inf)", "v0": "(0, inf)"},
        static=axes,
        momentum=zeros(mu_dtype),
        acc=Statistic(_no_numbers),
        alpha=Statistic(_no_numbers),
    )
    def accumulate(
        g: Array, s: AdagoState, h: Any, *, axes: Layout, spec: PartitionSpec | None
    ) -> tuple[Array, AdagoState]:
        mixed, m = accumulated(g, s.momentum, h.momentum, nesterov, "ema")
        matrices = Matrices.of(g, axes, spec, assemble=False)
        norms = [root(matrices.sum(abs_sq(x), -2, -1)) for x in matrices.blocks]
        clipped = jnp.minimum(_numbers(s.acc, axes, spec).restore(norms), h.gamma)
        acc = s.acc + clipped * clipped
        alpha = jnp.maximum(h.learning_rate * clipped / jnp.hypot(h.v0, root(acc)), h.eps)
        return mixed, s._replace(momentum=m, acc=acc, alpha=alpha)

    @leafwise(_Steps, static=axes, alpha=Statistic(_no_numbers))
    def step(o: Array, s: _Steps, h: Any, *, axes: Layout, spec: PartitionSpec | None) -> tuple[Array, _Steps]:
        matrices = Matrices.of(o, axes, spec, assemble=False)
        alphas = _numbers(s.alpha, axes, spec).blocks
        return matrices.restore([alpha * x for alpha, x in zip(alphas, matrices.blocks, strict=True)]), s

    def after(direction: PyTree, state: AdagoState, param_specs: PyTree) -> tuple[PyTree, AdagoState]:
        return step.update(direction, _Steps(state.count, state.alpha), param_specs=param_specs)[0], state

    return orthogonalizing(accumulate, orthogonalize, after=after)


def _numbers(x: Array, axes: Layout, spec: PartitionSpec | None) -> Matrices:
    """An array with one number for each matrix of a leaf."""
    return Matrices.of(x, axes.of_matrices, uncut(spec, axes.reduction + axes.output), assemble=False)


@public
def scale_by_adago(
    momentum: ScalarOrSchedule = 0.95,
    *,
    gamma: ScalarOrSchedule = 10.0,
    v0: ScalarOrSchedule = 1e-6,
    nesterov: bool = False,
    ns_coeffs: Coefficients = "keller",
    ns_steps: int | Array = NS_STEPS,
    ns_eps: ScalarOrSchedule = 1e-7,
    method: Method = "auto",
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    dimension_numbers: DimensionNumbers = None,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """The AdaGO direction (arXiv:2509.02981) without the floor of the step, which contains the learning rate.

    For trees of matrices only; arguments as in `adago`.

    Returns:
      The transformation; one number of state per parameter and two per matrix. Its `update` takes `param_specs`, see
      `muon`.

    Raises (in `init` and `update`):
      ValueError: a leaf that is no matrix; the sentence names its path.
    """
    orthogonalize = Orthogonalizer.of(
        ns_coeffs, ns_steps, ns_eps, 1.0, method, ns_dtype, dimension_numbers, shard_over, eps_name="ns_eps"
    )
    return _adago(1.0, momentum, gamma, 0.0, v0, nesterov, mu_dtype, orthogonalize)


@public
def adago(
    learning_rate: ScalarOrSchedule = 0.05,
    momentum: ScalarOrSchedule = 0.95,
    *,
    gamma: ScalarOrSchedule = 10.0,
    eps: ScalarOrSchedule = 5e-4,
    v0: ScalarOrSchedule = 1e-6,
    nesterov: bool = False,
    ns_coeffs: Coefficients = "keller",
    ns_steps: int | Array = NS_STEPS,
    ns_eps: ScalarOrSchedule = 1e-7,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    muon_mask: Choice = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.95,
    adam_eps: ScalarOrSchedule = 1e-10,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    method: Method = "auto",
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    dimension_numbers: DimensionNumbers = None,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaGO on matrices, AdamW on everything else (arXiv:2509.02981).

    n = ||G||_F; v^2 <- v^2 + min(n, gamma)^2; W <- W (1 - lr weight_decay) - max(eps, lr min(n, gamma) / v) O, where O
    is the orthogonal factor of the average gradient. The state's `alpha` holds each matrix's last step size.

    Args:
      learning_rate: first step size of matrices, >= 0, in units of the spectral norm.
      momentum: decay of the gradients' average, in [0, 1).
      gamma: norms of gradients above it count as it, > 0.
      eps: the least step size, >= 0; no guard of a division.
      v0: v before the first step, > 0.
      nesterov: whether the direction looks one gradient ahead.
      ns_coeffs, ns_steps: of the Newton-Schulz iteration, see `orthogonalize`.
      ns_eps: added to the norm there, >= 0.
      weight_decay: decoupled decay of matrices, multiplied by the learning rate.
      mask, muon_mask, adam_learning_rate, adam_b1, adam_b2, adam_eps, adam_weight_decay: as in `muon`.
      method, mu_dtype, ns_dtype, dimension_numbers, shard_over: as in `muon`.

    Returns:
      The optimizer; one number of state per entry of a matrix, two per matrix and two per other parameter.

    Raises:
      ValueError: a number out of its range, an unknown word; in `update`, dimension numbers that do not fit.
    """
    orthogonalize = Orthogonalizer.of(
        ns_coeffs, ns_steps, ns_eps, 1.0, method, ns_dtype, dimension_numbers, shard_over, eps_name="ns_eps"
    )
    steps = _adago(learning_rate, momentum, gamma, eps, v0, nesterov, mu_dtype, orthogonalize)
    matrices = decay_with_rate(optax.chain(steps, optax.scale(-1.0)), learning_rate, weight_decay, mask)
    adam = Adam(adam_learning_rate, adam_b1, adam_b2, adam_eps, adam_weight_decay)
    return with_auxiliary_adam(matrices, adam, learning_rate, muon_mask, dimension_numbers, mask)


PAPER = register(
    Paper(
        name="adago",
        title="AdaGrad Meets Muon: Adaptive Stepsizes for Orthogonal Updates",
        authors=("Zhang, Minxin", "Liu, Yuxuan", "Schaeffer, Hayden"),
        year=2025,
        arxiv="2509.02981",
        make=adago,
        transform=scale_by_adago,
        states=(AdagoState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=16.0,
        example={"muon_mask": HIDDEN},
        probe={"gamma": 1.0},
        golden=("adago.default", "adago.clip"),
    )
)
