"""Gradient Centralization: A New Optimization Technique for Deep Neural Networks.

Hongwei Yong, Jianqiang Huang, Xiansheng Hua, Lei Zhang, 2020, arXiv:2004.01461, Equation 1.
The gradient of every output channel loses its mean, so that SGD keeps the sum of the channel's weights and the response
to a constant input where they started.

Differs from the authors' code: nothing but the default of `channel_axis`; PyTorch's kernels have channels first.
`optax.centralize` is `channel_axis=0` for all leaves, which of Flax's kernels centralizes the wrong axes.
"""

import math
from typing import Any, NamedTuple

import optax
from jax import Array
from jax.sharding import PartitionSpec

from optax_zoo._core.blocks import Block
from optax_zoo._core.channels import LAST, Channel, ChannelAxis, channels
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register


class CentralizeGradientsState(NamedTuple):
    """Only the count, as every method has."""

    count: Array  # steps taken


@method
def centralize_gradients(channel_axis: ChannelAxis = LAST) -> optax.GradientTransformationExtraArgs:
    """Subtracts the mean of each output channel from gradients of two axes or more (arXiv:2004.01461).

    It stands before an optimizer: `optax.chain(centralize_gradients(), optax.sgd(0.1))`. Leaves with fewer axes, and
    those without a channel axis, pass unchanged.

    Inside `jax.shard_map` pass the parameters' PartitionSpecs, `update(grads, state, params, param_specs=specs)`.
    Under `jax.jit` nothing is needed.

    Args:
      channel_axis: the axis of output channels: an int, None (nothing is centralized), a (prefix) tree of these, or a
        function of (path, leaf) with a path such as "block/kernel". Flax's kernels have it last, PyTorch's first.
        Convolutions only: `lambda path, leaf: -1 if leaf.ndim > 3 else None`.

    Returns:
      A transformation without slots.

    Raises:
      ValueError: in `update`, an axis that a leaf does not have.
    """
    name = speaker()

    @leafwise(CentralizeGradientsState, static={"channel": channels(channel_axis)})
    def rule(
        g: Array, s: CentralizeGradientsState, h: Any, *, channel: Channel, spec: PartitionSpec | None
    ) -> tuple[Array, CentralizeGradientsState]:
        if channel.axis is None:
            return g, s
        inside = channel.others(g.ndim)
        block = Block.of(g, spec, f"{name}: a leaf of shape {g.shape}", "the mean of a channel is that of all of it")
        size = math.prod(block.whole[axis] for axis in inside)
        return g - block.sum(g, inside) / max(size, 1), s

    return rule


PAPER = register(
    Paper(
        name="centralize_gradients",
        title="Gradient Centralization: A New Optimization Technique for Deep Neural Networks",
        authors=("Yong, Hongwei", "Huang, Jianqiang", "Hua, Xiansheng", "Zhang, Lei"),
        year=2020,
        arxiv="2004.01461",
        algorithm="Equation 1",
        kind="transform",
        make=centralize_gradients,
        states=(CentralizeGradientsState,),
        elementwise=False,
    )
)
