"""AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights: AdamP and SGDP.

Byeongho Heo, Sanghyuk Chun, Seong Joon Oh, Dongyoon Han, Sangdoo Yun, Gyuwan Kim, Youngjung Uh, Jung-Woo Ha, 2020
(ICLR 2021), arXiv:2006.08217, Algorithms 1 and 2.
Where a normalisation makes the loss blind to the length of a weight vector, momentum only stretches it and so shrinks
the effective step; such weights are known by gradients that stand upright on them, and lose the radial part of their
update.

Differs from the authors' code: nothing but the default of `channel_axis`; PyTorch's kernels have channels first. As
there, SGDP without `nesterov` keeps the projected update as its buffer, which Algorithm 1 does not.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec

from optax_zoo._core.blocks import Block
from optax_zoo._core.channels import LAST, Channel, ChannelAxis, channels
from optax_zoo._core.finish import Mask, finish, flags
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, debias, ema, is_zero, split_decay
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros

_RANGES = {"delta": "[0, inf)", "wd_ratio": "[0, inf)", "dampening": "[0, 1]"}


class AdampState(NamedTuple):
    """Adam's moments."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerParameter  # second moment


class SgdpState(NamedTuple):
    """The momentum buffer."""

    count: Array  # steps taken
    buf: PerParameter  # sum of gradients


@method
def scale_by_adamp(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    nesterov: bool = False,
    channel_axis: ChannelAxis = LAST,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The AdamP direction, weight decay included; arguments as in `adamp`."""
    name = speaker()

    def step(h: Any, s: AdampState) -> dict[str, Array]:
        return {"bias1": debias(h.b1, h.t), "bias2": debias(h.b2, h.t)}

    @leafwise(
        AdampState,
        hyper={"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay, "delta": delta, "wd_ratio": wd_ratio},
        ranges=_RANGES,
        step=step,
        static={"channel": channels(channel_axis), "mask": flags(mask)},
        real_only=True,
        m=zeros(),
        v=squares(),
    )
    def rule(
        g: Array, s: AdampState, h: Any, p: Array, *, channel: Channel, mask: bool, spec: PartitionSpec | None
    ) -> tuple[Array, AdampState]:
        m = ema(s.m, g, h.b1)
        v = ema(s.v, g * g, h.b2)
        u = (ema(m, g, h.b1) if nesterov else m) / (h.bias1 * (jnp.sqrt(v / h.bias2) + h.eps))
        u, ratio = _projected(u, g, p, h, channel, spec, name)
        return _decayed(u, p, h.weight_decay, ratio, mask), s._replace(m=m, v=v)

    return rule


@method
def scale_by_sgdp(
    momentum: ScalarOrSchedule = 0.0,
    dampening: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    eps: ScalarOrSchedule = 1e-8,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    channel_axis: ChannelAxis = LAST,
    project_buffer: bool = True,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The SGDP direction, weight decay included; arguments as in `sgdp`."""
    name, keeps = speaker(), not is_zero(momentum)

    def step(h: Any, s: SgdpState) -> dict[str, Any]:
        return {"decay": h.weight_decay / split_decay(h.momentum).take}

    @leafwise(
        SgdpState,
        hyper={
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "eps": eps,
            "delta": delta,
            "wd_ratio": wd_ratio,
        },
        ranges=_RANGES,
        step=step,
        static={"channel": channels(channel_axis), "mask": flags(mask)},
        real_only=True,
        buf=zeros() if keeps else None,
    )
    def rule(
        g: Array, s: SgdpState, h: Any, p: Array, *, channel: Channel, mask: bool, spec: PartitionSpec | None
    ) -> tuple[Array, SgdpState]:
        new = (1.0 - h.dampening) * g
        buf = h.momentum * s.buf + new if keeps else new
        u, ratio = _projected(g + h.momentum * buf if nesterov else buf, g, p, h, channel, spec, name)
        kept = u if project_buffer and not nesterov else buf
        return _decayed(u, p, h.decay, ratio, mask), s._replace(buf=kept)

    return rule


def _projected(
    u: Array, g: Array, p: Array, h: Any, channel: Channel, spec: PartitionSpec | None, name: str
) -> tuple[Array, Any]:
    """`u` without its radial part if the gradient stands upright on the weights, and the factor on weight decay.

    Of the two views, every channel a row and the leaf one row, the first wins whose rows are all upright.
    """
    if p.ndim < 2:
        return u, 1.0
    block = Block.of(p, spec, f"{name}: a leaf of shape {p.shape}", "its channels and its norm must be whole")
    inside = channel.others(p.ndim)
    across = () if channel.axis is None else (channel.axis,)
    rows = [block.sum(x, inside) for x in (p * p, g * g, p * g, p * u)]
    layer = [block.sum(x, across) for x in rows]
    radial, ratio = jnp.zeros_like(layer[0]), 1.0
    for (pp, gg, pg, pu), axes, rest in ((layer, range(p.ndim), ()), (rows, inside, across)):
        length = jnp.sqrt(pp)
        cosine = jnp.abs(pg) / _nonzero(jnp.maximum(length, h.eps) * jnp.maximum(jnp.sqrt(gg), h.eps))
        size = max(math.prod(block.whole[axis] for axis in axes), 1)
        upright = block.largest(cosine, rest) < h.delta / math.sqrt(size)
        radial = jnp.where(upright, pu / _nonzero(jnp.square(length + h.eps)), radial)
        ratio = jnp.where(upright, h.wd_ratio, ratio)
    return u - p * radial, ratio


def _nonzero(x: Array) -> Array:
    return jnp.where(x > 0, x, jnp.ones_like(x))


def _decayed(u: Array, p: Array, weight_decay: Scalar, ratio: Any, mask: bool) -> Array:
    return u + weight_decay * ratio * p if mask and not is_zero(weight_decay) else u


@method
def adamp(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    nesterov: bool = False,
    channel_axis: ChannelAxis = LAST,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamP (arXiv:2006.08217, Algorithm 2).

    A leaf of two axes or more whose gradients g stand upright on its weights p, cos(p, g) < delta / sqrt(n) for the
    n entries of each channel, or else of the whole leaf, is taken for scale-invariant: its update loses the part
    along p, and its decay is multiplied by `wd_ratio`. The decision is one a leaf and step.

    Inside `jax.shard_map` pass the parameters' PartitionSpecs, `update(grads, state, params, param_specs=specs)`.
    Under `jax.jit` nothing is needed.

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root and to the norm of p; no norm in the cosine counts as less.
      weight_decay: decoupled decay, multiplied by the learning rate.
      delta: how upright a gradient must stand, >= 0; 0 never projects, which is AdamW.
      wd_ratio: what is left of the decay of scale-invariant weights, >= 0.
      nesterov: whether the direction looks one gradient ahead.
      channel_axis: the axis of output channels: an int, None (only the whole leaf), a (prefix) tree of these, or a
        function of (path, leaf) with a path such as "block/kernel". Flax's kernels have it last, PyTorch's first.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer, which needs params; two numbers of state per parameter.

    Raises:
      ValueError: a number out of its range; in `update`, an axis that a leaf does not have.
      TypeError: in `update`, a complex leaf.
    """
    direction = scale_by_adamp(b1, b2, eps, weight_decay, delta, wd_ratio, nesterov, channel_axis, mask)
    return finish(direction, learning_rate)


@method
def sgdp(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule = 0.0,
    dampening: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    eps: ScalarOrSchedule = 1e-8,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    channel_axis: ChannelAxis = LAST,
    project_buffer: bool = True,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGDP (arXiv:2006.08217, Algorithm 1): SGD with momentum whose update is projected as in `adamp`.

    Args:
      learning_rate: step size, >= 0.
      momentum: decay of the sum of gradients, in [0, 1); the authors use 0.9.
      dampening: share of each gradient that does not enter the sum, in [0, 1].
      weight_decay: decoupled decay, multiplied by learning_rate / (1 - momentum).
      nesterov: whether the direction looks one gradient ahead.
      eps, delta, wd_ratio, channel_axis, mask: as in `adamp`.
      project_buffer: without `nesterov`, keep the projected update as the sum, as the authors' code does; False: keep
        the sum itself, as Algorithm 1 does.

    Returns:
      The optimizer, which needs params; one number of state per parameter, none for momentum 0.

    Raises:
      ValueError: a number out of its range; in `update`, an axis that a leaf does not have.
      TypeError: in `update`, a complex leaf.
    """
    direction = scale_by_sgdp(
        momentum, dampening, weight_decay, nesterov, eps, delta, wd_ratio, channel_axis, project_buffer, mask
    )
    return finish(direction, learning_rate)


PAPER = register(
    Paper(
        name="adamp",
        title="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        authors=(
            "Heo, Byeongho",
            "Chun, Sanghyuk",
            "Oh, Seong Joon",
            "Han, Dongyoon",
            "Yun, Sangdoo",
            "Kim, Gyuwan",
            "Uh, Youngjung",
            "Ha, Jung-Woo",
        ),
        year=2020,
        arxiv="2006.08217",
        algorithm="Algorithm 2",
        make=adamp,
        transform=scale_by_adamp,
        states=(AdampState,),
        needs=("params",),
        floats_per_parameter=2,
        elementwise=False,
        example={"weight_decay": 0.01},
        probe={"delta": 2.0},
        golden=("adamp.default", "adamp.nesterov_wd"),
    )
)
SGDP = register(
    dataclasses.replace(
        PAPER,
        name="sgdp",
        algorithm="Algorithm 1",
        make=sgdp,
        transform=scale_by_sgdp,
        states=(SgdpState,),
        floats_per_parameter=1,
        relative_learning_rate=20.0,
        example={"momentum": 0.9, "weight_decay": 0.0001},
        probe={"delta": 2.0},
        golden=("sgdp.momentum", "sgdp.nesterov_wd"),
    )
)
