"""Exponentiated Gradient versus Gradient Descent for Linear Predictors: EG plus-minus.

Jyrki Kivinen, Manfred K. Warmuth, 1997, Information and Computation 132(1).
Each weight is the difference of two positive ones that move by the factors exp(-lr g) and exp(lr g), so that weights
of either sign, and weights that start at 0, learn multiplicatively.

Differs from the code by Keller Jordan (Exponentiated-Gradient-PyTorch): the weights start at the parameters, which
that code may draw anew; each array is a group (or its slices are) where a bias joins its matrix there; gradients are
neither clipped nor regularised; exponents are clipped at 20; 1e-7 is not added to sums. Without `total` the start is
ours: w+ - w- = p and w+ w- = (scale/2)^2.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, Slot, at_least_float32
from optax_zoo._core.trees import Leaves, PyTree
from optax_zoo.adaptive.exponentiated_gradient import LARGEST_EXPONENT

Axes: TypeAlias = Any
"""An int, a tuple of ints, or None for all axes."""


class ExponentiatedGradientPmState(NamedTuple):
    """The two positive weights behind each parameter."""

    count: Array  # steps taken
    w_plus: PerParameter  # grows against gradient
    w_minus: PerParameter  # grows along gradient


@method
def exponentiated_gradient_pm(
    learning_rate: ScalarOrSchedule,
    total: ScalarOrSchedule | None = None,
    axis: Axes = None,
    scale: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    """EG plus-minus: p = w_plus - w_minus, both updated by exponentiated gradients (Kivinen and Warmuth, 1997).

    Without `total` it is mirror descent on asinh(p / scale): |p| >> scale moves multiplicatively, |p| << scale as in
    SGD with the rate lr * scale.

    Args:
      learning_rate: step size, >= 0; times |g| it is clipped at 20.
      total: the sum of w_plus + w_minus over a group of n weights, to which it is rescaled after each step; at the
        start, total / n must exceed each |p|. None: no rescaling.
      axis: the axis or axes that a group runs along, as in a sum (0 groups the inputs of each neuron of an
        (in, out) kernel); None: a leaf is a group.
      scale: without `total`, the start is w_plus w_minus = scale^2 / 4; > 0; None: 1.

    Returns:
      The optimizer; two numbers of state per parameter.

    Raises:
      ValueError: a number out of its range; in `init`, `total` too small for a leaf (under jit its state is NaN
        instead), or a leaf without `axis`; in `update`, params are missing.
      TypeError: complex leaves.
    """
    if not (axis is None or _is_axis(axis) or (isinstance(axis, tuple) and all(map(_is_axis, axis)))):
        raise TypeError(f"{speaker()}: axis must be an integer, a tuple of integers or None, got {axis!r}")
    groups = total is not None
    beta = number("scale", 1.0 if scale is None else scale, "(0, inf)")
    first_total = number("total", total(0) if callable(total) else total, "(0, inf)") if groups else None
    name = speaker()

    def start(p: Array, sign: int) -> Array:
        if groups:
            c = jnp.asarray(first_total, p.dtype) / _group_size(p, axis)
            return jnp.where(c > jnp.abs(p), (c + sign * p) / 2, jnp.nan)
        b = jnp.asarray(beta, p.dtype)
        larger = jnp.hypot(p, b) + jnp.abs(p)
        return jnp.where(sign * p > 0, larger, b * b / larger) / 2

    def positive(sign: int) -> Slot:
        return Slot(lambda leaf, dtype: start(leaf.astype(dtype), sign), at_least_float32)

    @leafwise(
        ExponentiatedGradientPmState,
        hyper={"learning_rate": learning_rate} | ({"total": total} if groups else {}),
        ranges={"total": "(0, inf)"},
        real_only=True,
        w_plus=positive(1),
        w_minus=positive(-1),
    )
    def rule(
        g: Array, s: ExponentiatedGradientPmState, h: Any, p: Array, *, spec: Any
    ) -> tuple[Array, ExponentiatedGradientPmState]:
        e = jnp.clip(h.learning_rate * g, -LARGEST_EXPONENT, LARGEST_EXPONENT)
        w_plus, w_minus = s.w_plus * jnp.exp(-e), s.w_minus * jnp.exp(e)
        if groups:
            rescale = h.total / _group_sum(w_plus + w_minus, axis, spec, name)
            w_plus, w_minus = w_plus * rescale, w_minus * rescale
        return (w_plus - w_minus) - p, s._replace(w_plus=w_plus, w_minus=w_minus)

    def init(params: PyTree) -> Any:
        leaves = Leaves(name, "params", params)
        leaves.only_inexact(real_only=True)
        for path, leaf in zip(leaves.paths, leaves.values, strict=True):
            if groups and leaf is not None:
                _check(f"{name}: params at {path}", leaf, first_total, axis)
        return rule.init(params)

    return optax.GradientTransformationExtraArgs(init, rule.update)


def _is_axis(axis: object) -> bool:
    return isinstance(axis, int) and not isinstance(axis, bool)


def _axes(ndim: int, axis: Axes) -> tuple[int, ...]:
    return tuple(a % ndim for a in ((axis,) if isinstance(axis, int) else axis or range(ndim)))


def _group_size(leaf: Array, axis: Axes) -> int:
    return mesh.global_size(leaf) if axis is None else math.prod(leaf.shape[a] for a in _axes(leaf.ndim, axis))


def _group_sum(x: Array, axis: Axes, spec: Any, name: str) -> Array:
    if axis is None:
        return mesh.total(x)
    block = Block.of(x, spec, f"{name}: a leaf of shape {x.shape}", "the groups along its axes must be known")
    return block.sum(x, _axes(x.ndim, axis))


def _check(where: str, leaf: Array, total: Any, axis: Axes) -> None:
    """Refuses a leaf that lacks an axis, or whose weights `total` cannot hold; the latter only outside jit."""
    shape = jnp.shape(leaf)
    for a in () if axis is None else (axis,) if isinstance(axis, int) else axis:
        if not -len(shape) <= a < len(shape):
            raise ValueError(f"{where} has shape {shape} and no axis {a}")
    if axis is not None and mesh.varying_axes(leaf):
        raise ValueError(f"{where} is one device's block; with axis, call init outside of shard_map")
    if isinstance(leaf, Tracer) or isinstance(total, Tracer) or not np.size(leaf):
        return
    largest, size = float(np.max(np.abs(np.asarray(leaf, np.float64)))), _group_size(leaf, axis)
    if not largest * size < total:
        raise ValueError(
            f"{where} reach {largest:g} in groups of {size}, so total must exceed {largest * size:g}, got {total}"
        )


PAPER = register(
    Paper(
        name="exponentiated_gradient_pm",
        title="Exponentiated Gradient versus Gradient Descent for Linear Predictors",
        authors=("Kivinen, Jyrki", "Warmuth, Manfred K."),
        year=1997,
        url="https://doi.org/10.1006/inco.1996.2612",
        algorithm="EG+-",
        make=exponentiated_gradient_pm,
        states=(ExponentiatedGradientPmState,),
        needs=("params",),
        floats_per_parameter=2,
        relative_learning_rate=100.0,
    )
)
