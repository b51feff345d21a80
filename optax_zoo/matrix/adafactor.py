"""Adafactor: Adaptive Learning Rates with Sublinear Memory Cost.

Noam Shazeer, Mitchell Stern, 2018 (ICML 2018), arXiv:1804.04235, Algorithms 4 and 5.
Adam's second moment of an m x n matrix is taken to have rank one, so that m row means and n column means stand for it;
updates are clipped by their root mean square and scaled by that of the parameters.

Written after `optax.adafactor`, whose numbers and arguments it keeps. Differs from it: second moments are in float32
or better whatever the parameters are; the relative step sizes of the paper; weight decay may be multiplied by the step
size, as in Hugging Face's Adafactor; `dimension_numbers` keep layers, heads and experts apart; before `decay_offset`
steps are over the second moment is the present one, where optax's is NaN; float16 and zero gradients with `eps=0`
stay finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from optax_zoo._core import hyper as hp
from optax_zoo._core.blocks import Block
from optax_zoo._core.finish import Mask, flags
from optax_zoo._core.hyper import Decay, ScalarOrSchedule, abs_sq, ema, is_zero
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, zeros
from optax_zoo._core.views import DimensionNumbers
from optax_zoo.matrix._factoring import (
    LEAST,
    Factoring,
    Factors,
    factorings,
    inverse_root,
    root_mean_square,
    second_moments,
)

FLOAT32 = np.dtype("float32")
"""A default that `optax.inject_hyperparams` leaves alone; it would call `jnp.float32`, a schedule to it."""

_RANGES = {
    "decay_rate": "[0, inf)",
    "decay_offset": "[0, inf)",
    "clipping_threshold": "(0, inf)",
    "weight_decay_rate": "[0, inf)",
    "min_scale": "[0, inf)",
}


class AdafactorState(NamedTuple):
    """State of `adafactor` and `scale_by_adafactor`; what is not used is None."""

    count: Array  # steps taken
    learning_rate: Array | None  # last rate used
    v_row: PerLeaf  # means of rows
    v_col: PerLeaf  # means of columns
    v: PerLeaf  # other second moments
    m: PerParameter  # average of updates


@method
def scale_by_adafactor(
    factored: bool = True,
    decay_rate: ScalarOrSchedule = 0.8,
    step_offset: ScalarOrSchedule = 0,
    min_dim_size_to_factor: int = LEAST,
    epsilon: ScalarOrSchedule = 1e-30,
    decay_rate_fn: Callable[[Array, Any], Any] | None = None,
    *,
    dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    """The gradient over the root of its factored second moment; `optax.scale_by_factored_rms` by its own words.

    Args:
      factored, decay_rate, min_dim_size_to_factor, dimension_numbers: as in `adafactor`.
      step_offset: `decay_offset` of `adafactor`.
      epsilon: `eps` of `adafactor`.
      decay_rate_fn: the decay b2 from (0-based count of steps - step_offset, decay_rate); None: the paper's
        1 - (count + 1)**-decay_rate. One that ends below 1 keeps the second moment from freezing.

    Returns:
      The transformation, which does not need params; its `update` takes `param_specs`, see `adafactor`.
    """
    hp.check_range("step_offset", step_offset, "[0, inf)")
    hp.check_range("epsilon", epsilon, "[0, inf)")
    name = speaker()

    @leafwise(
        AdafactorState,
        hyper={"decay_rate": decay_rate, "decay_offset": step_offset, "eps": epsilon},
        ranges=_RANGES,
        step=lambda h, s: {"b2": _second_decay(h, decay_rate_fn)},
        static={"factoring": factorings(factored, min_dim_size_to_factor, dimension_numbers)},
        learning_rate=None,
        **second_moments(factored),
        m=None,
    )
    def rule(
        g: Array, s: AdafactorState, h: Any, *, factoring: Factoring, spec: PartitionSpec | None
    ) -> tuple[Array, AdafactorState]:
        return _over_root(g, s, h, factoring, spec, name)

    return rule


def _second_decay(h: Any, decay_rate_fn: Callable[[Array, Any], Any] | None = None) -> Any:
    """b2 = 1 - t**-decay_rate of the steps t = 1, 2, ... after the offset."""
    count = h.t - 1.0 - jnp.asarray(h.decay_offset, h.t.dtype)
    if decay_rate_fn is not None:
        return hp.as_scalar(decay_rate_fn(count, h.decay_rate))
    take = jnp.maximum(count + 1.0, 1.0) ** -h.decay_rate
    return Decay(1.0 - take, take)


def _over_root(
    g: Array, s: AdafactorState, h: Any, factoring: Factoring, spec: PartitionSpec | None, name: str
) -> tuple[Array, AdafactorState]:
    squared = abs_sq(g) + h.eps
    where = f"{name}: a leaf of shape {g.shape}"
    if s.v is not None:
        if s.v.shape != g.shape:
            raise ValueError(f"{where} has a second moment of shape {s.v.shape}; shard it like the leaf")
        v = ema(s.v, squared, h.b2)
        return g * inverse_root(v), s._replace(v=v)
    block = Block.of(g, spec, where, "the means of its rows and columns must be whole")
    axes = factoring.axes(block.whole)
    if axes is None:
        raise ValueError(f"{where} is not factored, and the state is that of one that is")
    factors = Factors(block, *axes, where)
    v_row, row = factors.averaged(s.v_row, squared, factors.columns, h.b2)
    v_col, column = factors.averaged(s.v_col, squared, factors.rows, h.b2)
    row = inverse_root(row) * jnp.sqrt(factors.mean(row, factors.rows))
    return g * row * inverse_root(column), s._replace(v_row=v_row, v_col=v_col)


@method
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = LEAST,
    decay_rate: ScalarOrSchedule = 0.8,
    decay_offset: ScalarOrSchedule = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: ScalarOrSchedule | None = 1.0,
    momentum: ScalarOrSchedule | None = None,
    dtype_momentum: DTypeLike | None = FLOAT32,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
    *,
    relative_step: bool = False,
    warmup_init: bool = False,
    scale_weight_decay: bool = False,
    min_scale: ScalarOrSchedule = 1e-3,
    dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor (arXiv:1804.04235, Algorithms 4 and 5), with the arguments of `optax.adafactor` first.

    The paper's own step sizes are `adafactor(relative_step=True)`; Hugging Face's class with its defaults is
    `adafactor(relative_step=True, min_dim_size_to_factor=1, scale_weight_decay=True)`, for leaves of three axes or
    more with `dimension_numbers=lambda path, x: MatrixView(-2, -1, range(x.ndim - 2)) if x.ndim > 1 else None`.

    Inside `jax.shard_map` pass the parameters' PartitionSpecs, `update(grads, state, params, param_specs=specs)`; the
    means of rows and columns may be whole on every device, or be cut as the axes are that they keep. Under `jax.jit`
    nothing is needed.

    Args:
      learning_rate: step size, >= 0; with `multiply_by_parameter_scale` relative to the size of the weights. None:
        1, or that of `relative_step`.
      min_dim_size_to_factor: a leaf is factored if both axes, the two largest or those of its view, have at least
        this size; 1 factors every matrix.
      decay_rate: c >= 0 of the second moment's decay 1 - t**-c.
      decay_offset: number of steps to leave out of t, for a state that has taken some already; >= 0.
      multiply_by_parameter_scale: whether a leaf's step is multiplied by the root mean square of its weights.
      clipping_threshold: d > 0 of the clipping u / max(1, rms(u) / d) of each leaf; None: none.
      momentum: decay of an average of finished updates, in [0, 1), without bias correction; None: none is kept.
      dtype_momentum: its dtype; None: the parameters'.
      weight_decay_rate: share of the weights that each step takes off, >= 0, whatever the learning rate.
      eps: added to squared gradients, >= 0.
      factored: False: each entry keeps its own second moment.
      weight_decay_mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.
      relative_step: whether the learning rate of step t is min(0.01, 1 / sqrt(t)); excludes `learning_rate`.
      warmup_init: whether it is min(1e-6 t, 1 / sqrt(t)) instead.
      scale_weight_decay: whether the decay is multiplied by the learning rate, and by the scale of the parameters
        where the step is.
      min_scale: the least such scale, >= 0; the paper's eps2.
      dimension_numbers: which axes are factored: a `MatrixView`, whose reduction and output axes are averaged over and
        whose batch axes (layers, heads, experts) are not, a (prefix) tree of them, or a function of (path, leaf); None
        for a leaf: its two largest axes.

    Returns:
      The optimizer, which needs params. Its state holds m + n numbers for an m x n matrix, one a parameter for other
      leaves, and with `momentum` one a parameter more; the learning rate last used is its `learning_rate`.

    Raises:
      ValueError: a number out of its range, or `relative_step` beside a learning rate; in `init` and `update`, a view
        that does not fit its leaf.
    """
    if relative_step and learning_rate is not None:
        raise ValueError(f"{speaker()}: relative_step excludes a learning_rate, got {learning_rate!r}")
    if warmup_init and not relative_step:
        raise ValueError(f"{speaker()}: warmup_init needs relative_step")
    given = {
        "learning_rate": learning_rate,
        "clipping_threshold": clipping_threshold,
        "momentum": momentum,
        "weight_decay_rate": weight_decay_rate,
    }
    clips, has_rate = clipping_threshold is not None, relative_step or learning_rate is not None
    averages, decays = (x is not None and not is_zero(x) for x in (momentum, weight_decay_rate))
    name = speaker()

    def step(h: Any, s: AdafactorState) -> dict[str, Any]:
        if relative_step:
            rate = {"learning_rate": jnp.minimum(1e-6 * h.t if warmup_init else 1e-2, 1.0 / jnp.sqrt(h.t))}
        else:
            rate = {"learning_rate": h.learning_rate} if has_rate else {}
        return {"b2": _second_decay(h), **rate}

    @leafwise(
        AdafactorState,
        hyper={"decay_rate": decay_rate, "decay_offset": decay_offset, "eps": eps, "min_scale": min_scale}
        | {key: value for key, value in given.items() if value is not None},
        ranges=_RANGES,
        step=step,
        static={
            "factoring": factorings(factored, min_dim_size_to_factor, dimension_numbers),
            "weight_decay_mask": flags(weight_decay_mask, "weight_decay_mask"),
        },
        learning_rate=0.0 if has_rate else None,
        **second_moments(factored),
        m=zeros(dtype_momentum) if averages else None,
    )
    def rule(
        g: Array,
        s: AdafactorState,
        h: Any,
        p: Array,
        *,
        factoring: Factoring,
        weight_decay_mask: bool,
        spec: PartitionSpec | None,
    ) -> tuple[Array, AdafactorState]:
        u, s = _over_root(g, s, h, factoring, spec, name)
        size = h.learning_rate if has_rate else 1.0
        if multiply_by_parameter_scale:
            size = size * jnp.maximum(root_mean_square(p), h.min_scale)
        clip = jnp.maximum(root_mean_square(u) / h.clipping_threshold, 1.0) if clips else 1.0
        u = u * (size / clip)
        if averages:
            u = ema(s.m, u, h.momentum)
            s = s._replace(m=u)
        if decays and weight_decay_mask:
            u = u + h.weight_decay_rate * (size if scale_weight_decay else 1.0) * p
        return -u, s

    return rule


PAPER = register(
    Paper(
        name="adafactor",
        title="Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
        authors=("Shazeer, Noam", "Stern, Mitchell"),
        year=2018,
        arxiv="1804.04235",
        algorithm="Algorithms 4 and 5",
        make=adafactor,
        transform=scale_by_adafactor,
        states=(AdafactorState,),
        needs=("params",),
        floats_per_parameter=0,
        elementwise=False,
        relative_learning_rate=8.0,
        probe={"min_dim_size_to_factor": type(LEAST)(2), "momentum": 0.5, "weight_decay_rate": 1e-5},
    )
)
