"""Cautious Weight Decay.

Lizhang Chen, Jonathan Li, Kaizhao Liang, Baiyu Su, Cong Xie, Nuo Wang Pierse, Chen Liang, Ni Lao, Qiang Liu, 2025,
arXiv:2510.12402, Algorithm 1.
Decays only the entries that the update shrinks as well, so that decay never pulls against the loss and its minima
stay where they are.

Differs from the authors' code: not compared with any. As in the paper's box, u p = 0 counts as agreement: an entry
without update decays.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, flags
from optax_zoo._core.hyper import ScalarOrSchedule
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.signs import agreement


class CautiousWeightDecayState(NamedTuple):
    """Only the count, for schedules."""

    count: Array  # steps taken


@method
def add_cautious_weight_decay(
    weight_decay: ScalarOrSchedule, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds weight_decay * [u p >= 0] * p to the ascent direction u (arXiv:2510.12402, Algorithm 1).

    Stands where `optax.add_decayed_weights` would, between the rule and the learning rate:
    `optax.chain(scale_by_x(), add_cautious_weight_decay(0.1), optax.scale_by_learning_rate(1e-3))`.

    Args:
      weight_decay: decay coefficient, >= 0.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      A transformation without slots that needs params.

    Raises:
      ValueError: a number out of its range.
    """

    @leafwise(CautiousWeightDecayState, hyper={"weight_decay": weight_decay}, static={"mask": flags(mask)})
    def rule(
        u: Array, s: CautiousWeightDecayState, h: Any, p: Array, *, mask: bool
    ) -> tuple[Array, CautiousWeightDecayState]:
        return (jnp.where(agreement(u, p) >= 0, u + h.weight_decay * p, u) if mask else u), s

    return rule


PAPER = register(
    Paper(
        name="add_cautious_weight_decay",
        title="Cautious Weight Decay",
        authors=(
            "Chen, Lizhang",
            "Li, Jonathan",
            "Liang, Kaizhao",
            "Su, Baiyu",
            "Xie, Cong",
            "Pierse, Nuo Wang",
            "Liang, Chen",
            "Lao, Ni",
            "Liu, Qiang",
        ),
        year=2025,
        arxiv="2510.12402",
        algorithm="Algorithm 1",
        kind="transform",
        make=add_cautious_weight_decay,
        states=(CautiousWeightDecayState,),
        needs=("params",),
        base=optax.sgd,
        example={"weight_decay": 0.01},
        relative_learning_rate=100.0,
    )
)
