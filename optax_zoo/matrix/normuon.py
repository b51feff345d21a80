"""NorMuon: Making Muon more efficient and scalable.

Zichong Li, Liming Liu, Chen Liang, Weizhu Chen, Tuo Zhao, 2025, arXiv:2510.05491; code in microsoft/dion.
Muon gives all directions the same size but leaves some output neurons with much larger updates than others; each
neuron's update is divided by the running root mean square of its entries, and the matrix keeps its Frobenius norm.

Differs from the authors' code: nothing, except that their sharded path normalizes each device's block as if it were
the whole matrix. Deviations of the orthogonalisation as in Muon.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from optax_zoo._core.finish import Decoupling, Mask, finish
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, abs_sq, ema
from optax_zoo._core.layouts import Layout, Matrices, uncut
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.matrix import Method
from optax_zoo._core.naming import method as public
from optax_zoo._core.orthogonalizer import Orthogonalizer
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.quintics import NS_STEPS, Coefficients
from optax_zoo._core.sharing import ShardOver
from optax_zoo._core.slots import PerLeaf, PerParameter, Statistic, real_at_least_float32, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import Choice, DimensionNumbers
from optax_zoo.matrix._auxiliary import HIDDEN, Adam, with_auxiliary_adam
from optax_zoo.matrix._momentum import Scaling, accumulated, orthogonalizing, scale_of

_GUARD = 1e-8  # added to the roots of v, and the least norm that is divided by


class NorMuonState(NamedTuple):
    """State of `scale_by_normuon`."""

    count: Array  # steps taken
    momentum: PerParameter  # sum of gradients
    v: PerLeaf  # of each output


class _Neurons(NamedTuple):
    count: Array  # steps taken
    v: PerLeaf  # of each output


def _no_squares(leaf: Array, *, axes: Layout) -> Array:
    return jnp.zeros(axes.per_output(leaf.shape), real_at_least_float32(leaf.dtype))


@public
def scale_by_normuon(
    momentum: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = False,
    ns_coeffs: Coefficients = "polar_express_5",
    ns_steps: int | Array = NS_STEPS,
    eps: ScalarOrSchedule = 1e-8,
    norm_safety: ScalarOrSchedule = 1.02,
    method: Method = "auto",
    scaling: Scaling | None = "spectral",
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    dimension_numbers: DimensionNumbers = None,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """The NorMuon direction (arXiv:2510.05491), for trees of matrices only; arguments as in `normuon`.

    Returns:
      The transformation; one number of state per parameter and one per output. Its `update` takes `param_specs`, see
      `muon`.

    Raises (in `init` and `update`):
      ValueError: a leaf that is no matrix; the sentence names its path.
    """
    orthogonalize = Orthogonalizer.of(
        ns_coeffs, ns_steps, eps, norm_safety, method, ns_dtype, dimension_numbers, shard_over
    )
    scale = scale_of(scaling)
    axes = {"axes": orthogonalize.axes}

    @leafwise(
        NorMuonState, hyper={"momentum": momentum}, static=axes, momentum=zeros(mu_dtype), v=Statistic(_no_squares)
    )
    def accumulate(g: Array, s: NorMuonState, h: Any, *, axes: Layout) -> tuple[Array, NorMuonState]:
        mixed, m = accumulated(g, s.momentum, h.momentum, nesterov, "sum")
        return mixed, s._replace(momentum=m)

    @leafwise(_Neurons, hyper={"b2": b2}, ranges={"b2": "[0, 1]"}, static=axes, v=Statistic(_no_squares))
    def normalize(o: Array, s: _Neurons, h: Any, *, axes: Layout, spec: PartitionSpec | None) -> tuple[Array, _Neurons]:
        matrices = Matrices.of(o, axes, spec, assemble=False)
        v = Matrices.of(s.v, axes, uncut(spec, axes.reduction), assemble=False)
        blocks, squares = [], []
        for (_, fan_in, fan_out), block, square in zip(matrices.fans, matrices.blocks, v.blocks, strict=True):
            normal, square = _per_neuron(matrices, block, square, fan_in, h.b2)
            blocks.append(scale(fan_in, fan_out) * normal)
            squares.append(square)
        return matrices.restore(blocks), s._replace(v=v.restore(squares))

    def after(direction: PyTree, state: NorMuonState, param_specs: PyTree) -> tuple[PyTree, NorMuonState]:
        neurons: Any
        direction, neurons = normalize.update(direction, _Neurons(state.count, state.v), param_specs=param_specs)
        return direction, state._replace(v=neurons.v)

    return orthogonalizing(accumulate, orthogonalize, after=after)


def _per_neuron(matrices: Matrices, o: Array, v: Array, fan_in: int, b2: Scalar) -> tuple[Array, Array]:
    """Orthogonal matrices whose outputs have had equal root mean squares, and the new mean squares."""
    before = jnp.sqrt(matrices.sum(abs_sq(o), -2, -1))
    v = ema(v, matrices.sum(abs_sq(o), -2) / max(fan_in, 1), b2)
    o = o / (jnp.sqrt(v) + _GUARD)
    after = jnp.sqrt(matrices.sum(abs_sq(o), -2, -1))
    return o * (before / jnp.maximum(after, _GUARD)), v


@public
def normuon(
    learning_rate: ScalarOrSchedule = 0.01,
    momentum: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = False,
    ns_coeffs: Coefficients = "polar_express_5",
    ns_steps: int | Array = NS_STEPS,
    eps: ScalarOrSchedule = 1e-8,
    norm_safety: ScalarOrSchedule = 1.02,
    scaling: Scaling | None = "spectral",
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
    cautious_weight_decay: bool = False,
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
    """NorMuon on matrices, AdamW on everything else (arXiv:2510.05491).

    Args:
      learning_rate: step size of matrices, >= 0.
      momentum: decay of the sum of gradients, in [0, 1).
      b2: decay of each output's mean square, in [0, 1], without bias correction: the matrix keeps its norm.
      nesterov: whether the direction looks one gradient ahead.
      ns_coeffs, ns_steps, eps, norm_safety: of the Newton-Schulz iteration, see `orthogonalize`.
      scaling, weight_decay, mask: as in `muon`.
      cautious_weight_decay: whether only the entries that the update shrinks as well decay (arXiv:2510.12402), those of
        AdamW too.
      muon_mask, adam_learning_rate, adam_b1, adam_b2, adam_eps, adam_weight_decay: who goes to AdamW and how it is
        set, as in `muon`.
      method, mu_dtype, ns_dtype, dimension_numbers, shard_over: as in `muon`.

    Returns:
      The optimizer; one number of state per entry of a matrix and one per output, two per other parameter.

    Raises:
      ValueError: a number out of its range, an unknown word; in `update`, dimension numbers that do not fit.
    """
    decay: Decoupling = "cautious" if cautious_weight_decay else "lr"
    matrices = finish(
        scale_by_normuon(
            momentum,
            b2,
            nesterov=nesterov,
            ns_coeffs=ns_coeffs,
            ns_steps=ns_steps,
            eps=eps,
            norm_safety=norm_safety,
            method=method,
            scaling=scaling,
            mu_dtype=mu_dtype,
            ns_dtype=ns_dtype,
            dimension_numbers=dimension_numbers,
            shard_over=shard_over,
        ),
        learning_rate,
        weight_decay,
        mask,
        decay=decay,
    )
    adam = Adam(adam_learning_rate, adam_b1, adam_b2, adam_eps, adam_weight_decay)
    return with_auxiliary_adam(matrices, adam, learning_rate, muon_mask, dimension_numbers, mask, decay)


PAPER = register(
    Paper(
        name="normuon",
        title="NorMuon: Making Muon more efficient and scalable",
        authors=("Li, Zichong", "Liu, Liming", "Liang, Chen", "Chen, Weizhu", "Zhao, Tuo"),
        year=2025,
        arxiv="2510.05491",
        make=normuon,
        transform=scale_by_normuon,
        states=(NorMuonState,),
        needs=("params",),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=2.0,
        example={"scaling": "rms", "muon_mask": HIDDEN},
        golden=("normuon.default",),
    )
)
