"""Old Optimizer, New Norm: An Anthology.

Jeremy Bernstein, Laker Newhouse, 2024, arXiv:2409.20325.
Adam, Shampoo and Muon without their averages are steepest descent, each under a norm of its own: choose the norm of
every layer, average gradients, and step in the direction that is steepest.

Differs from the authors' code: as `dualize`, which has the norms. The average is that of Muon's form "ema".
"""

from typing import Any, NamedTuple

import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, check_range, ema, is_zero
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.matrix import Method
from optax_zoo._core.naming import method as public
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.quintics import NS_STEPS, Coefficients
from optax_zoo._core.sharing import ShardOver
from optax_zoo._core.slots import PerParameter, cast_like, lifted, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo.matrix.atoms import FLAX, Roles
from optax_zoo.matrix.dualize import dualize


class DualSgdState(NamedTuple):
    """The average of gradients."""

    count: Array  # steps taken
    momentum: PerParameter  # average of gradients


def averaged(
    average: optax.GradientTransformation, dual: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """`dual` of an average of gradients that is not rounded in between."""
    chain = optax.chain(average, dual)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        directions, state = chain.update(lifted(updates), state, params, **extra)
        return cast_like(directions, updates), state

    return optax.GradientTransformationExtraArgs(chain.init, update)


@public
def dual_sgd(
    learning_rate: ScalarOrSchedule,
    roles: Roles,
    momentum: ScalarOrSchedule = 0.0,
    *,
    target_norm: ScalarOrSchedule | PyTree = 1.0,
    adaptive: bool = False,
    ns_coeffs: Coefficients = "you6",
    method: Method = "plain",
    eps: ScalarOrSchedule = 0.0,
    ns_steps: int | Array = NS_STEPS,
    shard_over: ShardOver = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Steepest descent under the norms of the layers (arXiv:2409.20325), with momentum.

    The average m <- momentum m + (1 - momentum) G, not corrected for its start at 0, goes through `dualize`.

    Args:
      learning_rate: length of a step in the norm of the network, >= 0; with `adaptive` one over its sharpness.
      roles: as in `dualize`.
      momentum: decay of the average of gradients, in [0, 1); 0 keeps none.
      target_norm, adaptive, ns_coeffs, method, eps, ns_steps, shard_over: as in `dualize`, as is the use inside
        `jax.shard_map`.
      weight_decay: decoupled decay, multiplied by the learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.
      mu_dtype: dtype of the average; None: the parameters'.

    Returns:
      The optimizer; one number of state per parameter, none for `momentum=0`.

    Raises:
      ValueError: as `dualize`.
    """
    check_range("momentum", momentum, "[0, 1)")
    direction = dualize(
        roles,
        target_norm=target_norm,
        adaptive=adaptive,
        ns_coeffs=ns_coeffs,
        method=method,
        eps=eps,
        ns_steps=ns_steps,
        shard_over=shard_over,
    )
    if not is_zero(momentum):

        @leafwise(DualSgdState, hyper={"momentum": momentum}, momentum=zeros(mu_dtype))
        def average(g: Array, s: DualSgdState, h: Any) -> tuple[Array, DualSgdState]:
            m = ema(s.momentum, g, h.momentum)
            return m, s._replace(momentum=m)

        direction = averaged(average, direction)
    return finish(direction, learning_rate, weight_decay, mask)


PAPER = register(
    Paper(
        name="dual_sgd",
        title="Old Optimizer, New Norm: An Anthology",
        authors=("Bernstein, Jeremy", "Newhouse, Laker"),
        year=2024,
        arxiv="2409.20325",
        make=dual_sgd,
        states=(DualSgdState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=4.0,
        example={"roles": FLAX, "momentum": 0.9},
    )
)
