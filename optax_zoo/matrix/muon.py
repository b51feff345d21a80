"""Muon: An optimizer for hidden layers in neural networks.

Keller Jordan, Yuchen Jin, Vlado Boza, You Jiacheng, Franz Cesista, Laker Newhouse, Jeremy Bernstein, 2024,
https://kellerjordan.github.io/posts/muon/; scaling "rms" from Moonlight (Liu et al., 2025, arXiv:2502.16982),
presets "polar_express" from Amsel et al., 2025, arXiv:2505.16932.
The momentum of a matrix is replaced by the nearest matrix whose singular values are all about 1, so that
directions with small gradients are learnt as fast as those with large ones.

Differs from the authors' code: the products run in the dtype of the leaf, float32 or better, where the
authors always take bfloat16 (`ns_dtype=jnp.bfloat16` does); on wide or tall matrices the Newton-Schulz
iteration runs on the Gram matrix where that is cheaper, which is equal up to rounding (`method="plain"` is
the authors' order of operations); a convolution kernel is scaled by its flattened shape instead of by its
last two axes.
"""

from typing import Any, NamedTuple

import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, choice
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.matrix import Method
from optax_zoo._core.naming import method as public
from optax_zoo._core.orthogonalizer import Orthogonalizer
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.quintics import NS_STEPS, Coefficients
from optax_zoo._core.sharing import ShardOver
from optax_zoo._core.slots import PerParameter, zeros
from optax_zoo._core.views import Choice, DimensionNumbers
from optax_zoo.matrix._auxiliary import HIDDEN, Adam, with_auxiliary_adam
from optax_zoo.matrix._momentum import MomentumForm, Scaling, accumulated, orthogonalizing, scale_of


class MuonState(NamedTuple):
    """State of `scale_by_muon`."""

    count: Array  # steps taken
    momentum: PerParameter  # average of gradients


@public
def scale_by_muon(
    momentum: ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    momentum_form: MomentumForm = "ema",
    ns_coeffs: Coefficients = "keller",
    ns_steps: int | Array = NS_STEPS,
    eps: ScalarOrSchedule = 1e-7,
    norm_safety: ScalarOrSchedule = 1.0,
    method: Method = "auto",
    scaling: Scaling | None = "width",
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    dimension_numbers: DimensionNumbers = None,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """The Muon direction, for trees of matrices only; arguments as in `muon`.

    Returns:
      The transformation; one number of state per parameter. Its `update` takes `param_specs`, see `muon`.

    Raises (in `init` and `update`):
      ValueError: a leaf that is no matrix; the sentence names its path.
    """
    choice("momentum_form", momentum_form, MomentumForm)
    orthogonalize = Orthogonalizer.of(
        ns_coeffs, ns_steps, eps, norm_safety, method, ns_dtype, dimension_numbers, shard_over
    )

    @leafwise(MuonState, hyper={"momentum": momentum}, momentum=zeros(mu_dtype))
    def accumulate(g: Array, s: MuonState, h: Any) -> tuple[Array, MuonState]:
        mixed, m = accumulated(g, s.momentum, h.momentum, nesterov, momentum_form)
        return mixed, s._replace(momentum=m)

    return orthogonalizing(accumulate, orthogonalize, scale_of(scaling))


@public
def muon(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    momentum_form: MomentumForm = "ema",
    ns_coeffs: Coefficients = "keller",
    ns_steps: int | Array = NS_STEPS,
    eps: ScalarOrSchedule = 1e-7,
    norm_safety: ScalarOrSchedule = 1.0,
    scaling: Scaling | None = "width",
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
    """Muon on matrices, AdamW on everything else (https://kellerjordan.github.io/posts/muon/).

    Embeddings and the output head are matrices too but belong to Adam: say so with `muon_mask="hidden"`, or with
    `dimension_numbers=flax_rules()`, which also reads the three axes of Flax's attention kernels. The authors train
    matrices at 0.02 and the rest at 3e-4; with `scaling="rms"` one AdamW learning rate and weight decay serve both.

    Inside `jax.shard_map` a sharded matrix must be made whole first: call `update(grads, state, params,
    param_specs=specs)` with the (prefix) tree of the parameters' PartitionSpecs. Under `jax.jit` nothing is
    needed.

    Args:
      learning_rate: step size of matrices, >= 0; in units of the spectral norm unless `scaling="rms"`.
      momentum: decay of the gradients' average, in [0, 1).
      nesterov: whether the direction looks one gradient ahead.
      momentum_form: "ema" `m = b*m + (1-b)*g`, or "sum" `m = b*m + g`; they differ by `eps` only.
      ns_coeffs: coefficients of the Newton-Schulz iteration, see `orthogonalize`.
      ns_steps: its number of steps, >= 1.
      eps: added to the Frobenius norm, >= 0.
      norm_safety: factor on the Frobenius norm, > 0.
      scaling: "width" sqrt(max(1, fan_out/fan_in)), "spectral" sqrt(fan_out/fan_in), "rms"
        0.2*sqrt(max(fan_in, fan_out)), or None.
      weight_decay: decoupled decay of matrices, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.
      muon_mask: which leaves are matrices: a (prefix) tree of bools, a function of (path, leaf) with a path
        such as "block/kernel", or a function of the parameters; "hidden": matrices whose path names neither an
        embedding nor an output head (`muon_mask_by_path()`). None: leaves with two axes, and those to
        which a tree or a function of `dimension_numbers` gives a view.
      adam_learning_rate: of the other leaves; None: `learning_rate`.
      adam_b1: decay of their first moment, in [0, 1).
      adam_b2: decay of their second moment, in [0, 1).
      adam_eps: added to the root of their second moment.
      adam_weight_decay: their decoupled decay, multiplied by their learning rate.
      method: "plain", "gram" or "auto"; equal up to rounding. "svd" is exact.
      mu_dtype: dtype of the momentum; None: the parameters'.
      ns_dtype: dtype of the products; None: float32 or better.
      dimension_numbers: how a leaf is read as matrices: a `MatrixView` (or
        `optax.contrib.MuonDimensionNumbers`), a (prefix) tree of them, a function of (path, leaf) or rules over paths
        (`matrix_rules`, `flax_rules`); "fallback" for a leaf leaves it to AdamW. None: all axes but the last are
        reduced over. `describe(tx, params)` prints what was decided for every leaf.
      shard_over: a mesh axis, or several, over whose devices the matrices are shared out: each device
        orthogonalises its part, and one collective per shape brings the results together. Under `jax.jit` the
        parameters' mesh is found by itself and the state stays sharded like the parameters, replicated, by rows or by
        columns; a `NamedSharding` names the mesh too. None: every device orthogonalises every matrix it holds.

    Returns:
      The optimizer; one number of state per entry of a matrix, two per other parameter.

    Raises:
      ValueError: a number out of its range, an unknown word; in `update`, dimension numbers that do not fit.
    """
    matrices = finish(
        scale_by_muon(
            momentum,
            nesterov=nesterov,
            momentum_form=momentum_form,
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
    )
    adam = Adam(adam_learning_rate, adam_b1, adam_b2, adam_eps, adam_weight_decay)
    return with_auxiliary_adam(matrices, adam, learning_rate, muon_mask, dimension_numbers, mask)


PAPER = register(
    Paper(
        name="muon",
        title="Muon: An optimizer for hidden layers in neural networks",
        authors=(
            "Jordan, Keller",
            "Jin, Yuchen",
            "Boza, Vlado",
            "You, Jiacheng",
            "Cesista, Franz",
            "Newhouse, Laker",
            "Bernstein, Jeremy",
        ),
        year=2024,
        url="https://kellerjordan.github.io/posts/muon/",
        make=muon,
        transform=scale_by_muon,
        states=(MuonState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=2.0,
        example={"scaling": "rms", "muon_mask": HIDDEN},
        races_by_default=True,
        golden=("muon.default", "muon.plain_momentum", "muon.moonshot_rms", "muon.polar_express"),
    )
)
