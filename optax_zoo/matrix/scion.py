"""Scion: Training Deep Learning Models with Norm-Constrained LMOs.

Thomas Pethick, Wanyun Xie, Kimon Antonakopoulos, Zhenyu Zhu, Antonio Silveti-Falls, Volkan Cevher, 2025,
arXiv:2502.07529.
Every leaf moves towards the point of a ball that is best for the average of its gradients: constrained, the weights
stay in the ball, which is weight decay of 1; unconstrained, only the steps do.

Differs from the authors' code: products run in float32 or better, not in bfloat16; embeddings, heads and kernels are
told apart by their names and axes where the authors have one norm for each group of parameters; `eps` is added to
Euclidean norms, which for embeddings and vectors is 1e-8 on their root mean square there.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.finish import finish
from optax_zoo._core.hyper import Decay, ScalarOrSchedule, ema
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.matrix import Method
from optax_zoo._core.naming import method as public
from optax_zoo._core.orthogonalizer import Orthogonalizer
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.quintics import NS_STEPS, Coefficients
from optax_zoo._core.rules import HEADS, mentions
from optax_zoo._core.sharing import ShardOver
from optax_zoo._core.slots import PerParameter, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import MatrixView
from optax_zoo.matrix.atoms import FLAX, TABLE, LargestEntry, Roles, Row, Shape, Spectral, dual_roles
from optax_zoo.matrix.dual_sgd import averaged
from optax_zoo.matrix.dualize import dualizer


class ScionState(NamedTuple):
    """The average of gradients."""

    count: Array  # steps taken
    m: PerParameter  # average of gradients


def _conv(shape: Shape) -> Spectral:
    """sqrt(out/in) / k for the k positions of the kernel, as one matrix of k * in inputs."""
    return Spectral(MatrixView(tuple(range(len(shape) - 1)), len(shape) - 1), math.sqrt(math.prod(shape[:-2])))


def _sign(shape: Shape) -> LargestEntry:
    return LargestEntry(max(math.prod(shape[:-1]), 1))


SCION_TABLE: Mapping[str, Row] = {
    **TABLE,
    "conv": TABLE["conv"]._replace(atom=_conv),
    "sign": TABLE["sign"]._replace(atom=_sign, wanted="shape (in, out)", fewest=2, local=False),
}


def _role_by_path(path: str, shape: Shape) -> Any:
    """Output heads are "sign", other leaves as `dual_roles` says."""
    role = dual_roles()(path, shape)
    return "sign" if role == "linear" and mentions(path, HEADS) else role


@public
def scion(
    learning_rate: ScalarOrSchedule,
    alpha: ScalarOrSchedule = 0.1,
    constrained: bool = False,
    radius: ScalarOrSchedule | PyTree = 1.0,
    *,
    roles: Roles = FLAX,
    ns_coeffs: Coefficients = "keller",
    ns_steps: int | Array = NS_STEPS,
    method: Method = "auto",
    eps: ScalarOrSchedule = 1e-7,
    mu_dtype: DTypeLike | None = None,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion (arXiv:2502.07529): W <- W - lr radius T(m), or with `constrained` (1 - lr) W - lr radius T(m).

    m <- (1 - alpha) m + alpha G, and T(m) is the direction of norm 1 as in `dualize` under two other norms: "sign" is
    sign(m) / in, for output heads, and "conv" reads a kernel as one matrix, sqrt(out/in) / k U V^T for its k positions.

    The authors' radii are 50 for the body of a GPT and 3000 for its head, at a learning rate of 2^-12; 8 and 128 for a
    convolutional network, at 2^-4 and with `alpha=0.5`.

    Inside `jax.shard_map` pass the parameters' PartitionSpecs, `update(grads, state, params, param_specs=specs)`.
    Under `jax.jit` nothing is needed.

    Args:
      learning_rate: >= 0; at most 1 where `constrained` is to hold the weights in the ball.
      alpha: weight of the newest gradient in the average, in (0, 1]; 1 keeps none.
      constrained: whether the weights stay in the ball of the radius.
      radius: of the ball of each leaf, >= 0; a (prefix) tree gives every leaf its own.
      roles: as in `dualize`; "flax": `dual_roles()`, and "sign" for output heads by their names.
      ns_coeffs: coefficients of the Newton-Schulz iteration, see `orthogonalize`.
      ns_steps: its number of steps, >= 1.
      method: "plain", "gram" or "auto", equal up to rounding; "svd" is exact.
      eps: added to the Euclidean norm that a matrix, row or vector is divided by, >= 0.
      mu_dtype: dtype of the average; None: the parameters'.
      shard_over: mesh axes over whose devices the matrices are shared out, see `muon`.

    Returns:
      The optimizer, which needs params where `constrained`; one number of state per parameter,
      none for `alpha=1`.

    Raises:
      ValueError: a number out of its range, an unknown word; in `init` and `update`, a leaf without a role or with one
        that does not fit its shape, or no entry for a leaf.
    """
    orthogonalize = Orthogonalizer.of(
        ns_coeffs=ns_coeffs, ns_steps=ns_steps, eps=eps, method=method, shard_over=shard_over
    )
    direction = dualizer(roles, orthogonalize, {"radius": radius}, eps, False, SCION_TABLE, _role_by_path)
    decay = 1.0 if constrained else 0.0
    if isinstance(alpha, numbers.Real) and alpha == 1:
        return finish(direction, learning_rate, decay)

    @leafwise(ScionState, hyper={"alpha": alpha}, ranges={"alpha": "(0, 1]"}, m=zeros(mu_dtype))
    def average(g: Array, s: ScionState, h: Any) -> tuple[Array, ScionState]:
        m = ema(s.m, g, Decay(1.0 - h.alpha, h.alpha))
        return m, s._replace(m=m)

    return finish(averaged(average, direction), learning_rate, decay)


PAPER = register(
    Paper(
        name="scion",
        title="Training Deep Learning Models with Norm-Constrained LMOs",
        authors=(
            "Pethick, Thomas",
            "Xie, Wanyun",
            "Antonakopoulos, Kimon",
            "Zhu, Zhenyu",
            "Silveti-Falls, Antonio",
            "Cevher, Volkan",
        ),
        year=2025,
        arxiv="2502.07529",
        make=scion,
        states=(ScionState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=4.0,
    )
)
