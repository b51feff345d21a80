"""Toward Understanding Why Adam Converges Faster Than SGD for Transformers: coordinate clipping.

Yan Pan, Yuanzhi Li, 2023, arXiv:2306.00204, Section 4.
Clips the largest coordinates of the whole tree to the size of the next smaller one: SGD with a tenth of them
clipped comes close to Adam, because a few coordinates carry most of the directional sharpness.

Differs from the authors' code: `per_leaf` is an addition. The threshold is found without sorting, by bisection of the
floating-point numbers themselves: one count of coordinates per bit, exact, and right over sharded leaves.
"""

from collections import defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core import mesh
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import widest

_STACK_FROM = 8


class ClipByCoordinateState(NamedTuple):
    """Only the count, for schedules."""

    count: Array  # steps taken


@method
def clip_by_coordinate(
    fraction: ScalarOrSchedule = 0.1, max_value: ScalarOrSchedule | None = None, per_leaf: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Clips the given fraction of the coordinates, those largest in magnitude (arXiv:2306.00204).

    With n coordinates in all, the threshold tau is entry int(fraction * n), counted from 0, of all magnitudes in
    descending order; each coordinate x becomes sign(x) min(|x|, tau). The authors clip 0.1 of the gradient of SGD,
    and 0.5 of the finished update of Adam and Lion.

    Args:
      fraction: share of coordinates that may be clipped, in [0, 1]; 0 changes nothing. A traced fraction of more
        than 2^24 coordinates is rounded in float32.
      max_value: a fixed threshold > 0 in place of the fraction.
      per_leaf: a threshold for every leaf instead of one for the whole tree.

    Returns:
      A transformation without slots.

    Raises:
      ValueError: a number out of its range.
    """
    fixed = max_value is not None

    def tree(h: Any, gs: list[Array]) -> dict[str, Array]:
        return {} if fixed or per_leaf or not gs else {"threshold": largest_magnitude(gs, h.fraction)}

    @leafwise(
        ClipByCoordinateState,
        hyper={"max_value": max_value} if fixed else {"fraction": fraction},
        ranges={"fraction": "[0, 1]", "max_value": "(0, inf)"},
        tree=tree,
    )
    def rule(g: Array, s: ClipByCoordinateState, h: Any) -> tuple[Array, ClipByCoordinateState]:
        tau = h.max_value if fixed else largest_magnitude([g], h.fraction) if per_leaf else h.threshold
        if jnp.iscomplexobj(g):
            size = jnp.abs(g)
            return g * (jnp.minimum(size, tau) / jnp.where(size > 0, size, 1)), s
        return jnp.clip(g, -tau, tau), s

    return rule


def largest_magnitude(xs: list[Array], fraction: Scalar) -> Array:
    """Entry int(fraction * n), counted from 0, of all n magnitudes in descending order; 0 for fraction 1.

    Non-negative floating-point numbers are ordered like their bit patterns, so the pattern of the answer is found
    bit by bit from the highest: a bit is set if at least that many magnitudes reach the number so far. Counts are
    kept in two 16-bit halves, which holds up to 2^48 coordinates. NaNs count as 0.
    """
    real = jnp.finfo(widest(jnp.float32, *(x.dtype for x in xs))).dtype
    pattern = jnp.uint64 if real == jnp.float64 else jnp.uint32
    n = sum(mesh.global_size(x) for x in xs)
    high, low = _halves(int(fraction * n) + 1 if isinstance(fraction, float | int) else fraction * n + 1)
    stacks = _stacked(xs)

    def set_bit(i: Array, found: Array) -> Array:
        candidate = found | (jnp.ones((), pattern) << (jnp.finfo(real).bits - 2 - i).astype(pattern))
        reached_high, reached_low = _count(stacks, jax.lax.bitcast_convert_type(candidate, real))
        enough = (reached_high > high) | ((reached_high == high) & (reached_low >= low))
        return jnp.where(enough, candidate, found)

    found = jax.lax.fori_loop(0, jnp.finfo(real).bits - 1, set_bit, jnp.zeros((), pattern))
    return jax.lax.bitcast_convert_type(found, real)


def _stacked(xs: list[Array]) -> list[Array]:
    """The same entries in fewer arrays where many leaves are alike, because each array is compiled on its own."""
    groups: dict[Any, list[Array]] = defaultdict(list)
    for x in xs:
        groups[jax.typeof(x)].append(x)
    return [x for group in groups.values() for x in (group if len(group) < _STACK_FROM else [jnp.stack(group)])]


def _halves(count: Scalar) -> tuple[Any, Any]:
    if isinstance(count, int):
        return jnp.uint32(count >> 16), jnp.uint32(count & 0xFFFF)
    high = jnp.floor(count / 65536)
    return high.astype(jnp.uint32), jnp.floor(count - 65536 * high).astype(jnp.uint32)


def _count(xs: list[Array], threshold: Array) -> tuple[Array, Array]:
    counts = [jnp.sum(jnp.abs(x).astype(threshold.dtype) >= threshold, dtype=jnp.uint32) for x in xs]
    total = mesh.sum_leaves({"high": c >> 16, "low": c & 0xFFFF} for c in counts)
    return total["high"] + (total["low"] >> 16), total["low"] & 0xFFFF


PAPER = register(
    Paper(
        name="clip_by_coordinate",
        title="Toward Understanding Why Adam Converges Faster Than SGD for Transformers",
        authors=("Pan, Yan", "Li, Yuanzhi"),
        year=2023,
        arxiv="2306.00204",
        algorithm="Section 4",
        kind="transform",
        make=clip_by_coordinate,
        states=(ClipByCoordinateState,),
        elementwise=False,
    )
)
