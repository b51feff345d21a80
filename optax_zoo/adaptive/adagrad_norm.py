"""AdaGrad stepsizes: Sharp convergence over nonconvex landscapes: AdaGrad-Norm.

Rachel Ward, Xiaoxia Wu, Leon Bottou, 2018, arXiv:1806.01811, Algorithm 1; also Amit Attia, Tomer Koren, 2023,
arXiv:2302.08783, who call b0 gamma.
SGD whose one step size falls with the norm of all gradients so far, and so needs neither the noise nor the smoothness
of the loss.

Differs from the authors' code: one accumulator for the whole tree, as in the papers' box, where the code has one for
each row of a leaf; that is granularity "axis". Its rule for 1-D leaves, which mixes in the leaf before, and its weight
decay, which multiplies the gradient, are not reproduced. `initial_accumulator_value` is b0^2.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec

from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block
from optax_zoo._core.channels import LAST, Channel, ChannelAxis, channels
from optax_zoo._core.finish import finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, choice, ema, is_zero
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, Statistic, squares, zeros

Granularity: TypeAlias = Literal["global", "tensor", "axis"]


class AdagradNormState(NamedTuple):
    """What the step sizes are made of, and the momentum."""

    count: Array  # steps taken
    acc: Array | PerLeaf  # squares beside b0^2
    buf: PerParameter  # EMA of gradients


@method
def scale_by_adagrad_norm(
    initial_accumulator_value: ScalarOrSchedule = 1e-2,
    eps: ScalarOrSchedule = 1e-10,
    momentum: ScalarOrSchedule = 0.0,
    granularity: Granularity = "global",
    channel_axis: ChannelAxis = LAST,
) -> optax.GradientTransformationExtraArgs:
    """The AdaGrad-Norm direction; arguments as in `adagrad_norm`."""
    choice("granularity", granularity, Granularity)
    name, keeps, is_global = speaker(), not is_zero(momentum), granularity == "global"

    def within(ndim: int, channel: Channel) -> tuple[int, ...]:
        """The axes of a leaf over which entries share a step size."""
        return tuple(range(ndim)) if granularity == "tensor" else channel.others(ndim) if ndim > 1 else ()

    def first(leaf: Array, channel: Channel) -> Array:
        each = squares().init(leaf)
        axes = within(leaf.ndim, channel)
        return jnp.zeros([1 if axis in axes else n for axis, n in enumerate(leaf.shape)], each.dtype) if axes else each

    def gathered(x: Array, channel: Channel, spec: PartitionSpec | None) -> Array:
        """The sums of `x` over the entries that share a step size."""
        if granularity == "tensor":
            return mesh.total(x)
        if x.ndim < 2:
            return x
        block = Block.of(x, spec, f"{name}: a leaf of shape {x.shape}", "its slices must be whole")
        return block.sum(x, within(x.ndim, channel))

    def sums(g: Array, s: AdagradNormState, h: Any) -> dict[str, Array]:
        return {"squares": jnp.sum(abs_sq(g))}

    def step(h: Any, s: AdagradNormState) -> dict[str, Array]:
        return {"acc": s.acc + h.squares}

    @leafwise(
        AdagradNormState,
        hyper={"initial_accumulator_value": initial_accumulator_value, "eps": eps, "momentum": momentum},
        ranges={"initial_accumulator_value": "[0, inf)"},
        sums=sums if is_global else None,
        step=step if is_global else None,
        static={"channel": channels(channel_axis)},
        acc=0.0 if is_global else Statistic(first),
        buf=zeros() if keeps else None,
    )
    def rule(
        g: Array, s: AdagradNormState, h: Any, *, channel: Channel, spec: PartitionSpec | None
    ) -> tuple[Array, AdagradNormState]:
        buf = ema(s.buf, g, h.momentum) if keeps else g
        acc = h.acc if is_global else s.acc + gathered(abs_sq(g), channel, spec)
        return buf / (jnp.sqrt(h.initial_accumulator_value + acc) + h.eps), s._replace(acc=acc, buf=buf)

    return rule


@method
def adagrad_norm(
    learning_rate: ScalarOrSchedule = 1.0,
    initial_accumulator_value: ScalarOrSchedule = 1e-2,
    eps: ScalarOrSchedule = 1e-10,
    momentum: ScalarOrSchedule = 0.0,
    granularity: Granularity = "global",
    channel_axis: ChannelAxis = LAST,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad-Norm (arXiv:1806.01811, Algorithm 1): p - learning_rate * g / sqrt(b0^2 + the sum of |g|^2 so far).

    With "axis" inside `jax.shard_map` pass the parameters' PartitionSpecs, `update(grads, state, params,
    param_specs=specs)`. Under `jax.jit`, and for the other granularities, nothing is needed.

    Args:
      learning_rate: the paper's eta, >= 0, in units of the parameters: about how far they have to go.
      initial_accumulator_value: b0^2, >= 0, in units of squared gradients.
      eps: added to the root.
      momentum: decay of the EMA of gradients that is stepped along, in [0, 1).
      granularity: one step size for the whole tree ("global", the paper's), for each leaf ("tensor"), or for each slice
        of a leaf along its channel axis ("axis"; of 0-d and 1-d leaves for each entry).
      channel_axis: the axis of "axis": an int, None (one step size for the leaf), a (prefix) tree of these, or a
        function of (path, leaf) with a path such as "block/kernel". Flax's kernels have channels last, PyTorch's first.

    Returns:
      The optimizer; a number of state for each step size, and with momentum one per parameter.

    Raises:
      ValueError: a number out of its range, an unknown word; in `update`, an axis that a leaf does not have.
    """
    direction = scale_by_adagrad_norm(initial_accumulator_value, eps, momentum, granularity, channel_axis)
    return finish(direction, learning_rate)


PAPER = register(
    Paper(
        name="adagrad_norm",
        title="AdaGrad stepsizes: Sharp convergence over nonconvex landscapes",
        authors=("Ward, Rachel", "Wu, Xiaoxia", "Bottou, Leon"),
        year=2018,
        arxiv="1806.01811",
        algorithm="Algorithm 1",
        make=adagrad_norm,
        transform=scale_by_adagrad_norm,
        states=(AdagradNormState,),
        elementwise=False,
        relative_learning_rate=500.0,
        golden=("adagrad_norm.default", "adagrad_norm.per_row"),
    )
)
