"""Cautious Optimizers: Improving Training with One Line of Code.

Kaizhao Liang, Lizhang Chen, Bo Liu, Qiang Liu, 2024, arXiv:2411.16085, Algorithm 1.
Moves only the entries for which the update of the wrapped method and the gradient have the same sign, and lengthens
what is left by the share that is left; so a small enough step never increases the loss of its own batch.

Differs from the authors' code: signs are compared in the place of the sign of a product, which underflows to 0. The
paper's box adds an eps to the share that their code bounds from below.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core import mesh
from optax_zoo._core.hyper import ScalarOrSchedule
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.signs import agreement
from optax_zoo._core.steering import Direction, steering


class CautiousState(NamedTuple):
    """Only the wrapped method's state."""

    count: Array  # steps taken
    inner_state: Any  # of the method wrapped


@method
def cautious(
    inner: optax.GradientTransformation, *, direction: Direction = "ascent", min_share: ScalarOrSchedule = 1e-3
) -> optax.GradientTransformationExtraArgs:
    """Drops the entries of the updates of `inner` whose sign differs from the gradient's (arXiv:2411.16085).

    With m = [u g > 0] for the ascent direction u and the gradient g of one leaf, u becomes
    u m / max(mean(m), min_share). The mean is over the whole leaf, inside `jax.shard_map` too.

    Args:
      inner: any transformation; extra arguments are forwarded to it. Weight decay inside of it is masked like the
        rest: the authors decay the weights behind the wrapper.
      direction: "ascent" around a `scale_by_x`, which still lacks the learning rate; "descent" around an optimizer,
        whose updates are added to the parameters and so agree with the gradient where their signs differ.
      min_share: least share to divide by, in (0, 1]; 1 masks without lengthening.

    Returns:
      The wrapper, without slots of its own.

    Raises:
      TypeError: `inner` is not a gradient transformation.
      ValueError: `direction` is neither word, or a number out of its range.
    """

    @steering(
        inner,
        CautiousState,
        direction=direction,
        hyper={"min_share": min_share},
        ranges={"min_share": "(0, 1]"},
    )
    def rule(u: Array, g: Array, h: Any) -> Array:
        m = (agreement(u, g) > 0).astype(jnp.finfo(u.dtype).dtype)
        share = mesh.total(m) / max(mesh.global_size(m), 1)
        return u * (m / jnp.maximum(share, h.min_share))

    return rule


PAPER = register(
    Paper(
        name="cautious",
        title="Cautious Optimizers: Improving Training with One Line of Code",
        authors=("Liang, Kaizhao", "Chen, Lizhang", "Liu, Bo", "Liu, Qiang"),
        year=2024,
        arxiv="2411.16085",
        algorithm="Algorithm 1",
        make=cautious,
        kind="wrapper",
        states=(CautiousState,),
        elementwise=False,
        example={"direction": "descent"},
    )
)
