"""SWAD: Domain Generalization by Seeking Flat Minima.

Junbum Cha, Sanghyuk Chun, Kyungjae Lee, Han-Cheol Cho, Seunghyun Park, Yunsung Lee, Sungrae Park, 2021,
arXiv:2102.08604, Algorithm 1.
Averages every iterate between the evaluation at which the validation loss stops falling and the one at which it has
risen for good, so that the mean lies in the flat valley between them.

Differs from the authors' code: nothing with `reference_counts=True`, which weighs one interval twice or leaves it out.
A run that has not converged is refused, where their code returns the last interval.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, averaging, evaluate
from optax_zoo._core.hyper import number
from optax_zoo._core.lookup import found
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, wide_zeros
from optax_zoo._core.trees import PyTree
from optax_zoo.merging._leaves import Matched, several, unstacked
from optax_zoo.merging.soups import leaf as weighted_mean


class SwadState(NamedTuple):
    """The mean of one evaluation interval, and the state of the optimizer it watches."""

    count: Array  # steps taken
    n: Array  # points collected
    mean: PerParameter  # averaged parameters
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "mean"

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean since the interval began; `params` before its first step."""
        return evaluate(lambda mean, p, h: jnp.where(h.n > 0, mean, p), self.mean, params, n=self.n)


@method
def swad_segments(
    inner: optax.GradientTransformation, *, accumulator_dtype: DTypeLike = "float32"
) -> optax.GradientTransformationExtraArgs:
    """Keeps the mean of the parameters since the last evaluation, for `swad` (arXiv:2102.08604).

        for batch in interval:
            params, opt_state, ... = step(params, opt_state, batch)
        segments.append(eval_params(opt_state, params))
        val_losses.append(evaluate(params))
        opt_state = next_segment(opt_state)
        ...
        average, counts, start, end = swad(segments, val_losses)

    Args:
      inner: the optimizer; its updates pass through unchanged.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: in `update`, params are missing.
    """

    def step(h: Any, s: SwadState) -> dict[str, Array]:
        n = s.n + 1.0
        return {"n": n, "take": 1.0 / n}

    @averaging(inner, SwadState, hyper={}, step=step, n=0.0, mean=at_least(wide_zeros(), accumulator_dtype))
    def rule(p: Array, s: SwadState, h: Any) -> SwadState:
        return s._replace(mean=approach(s.mean, p, h.take))

    return rule


@method
def next_segment(opt_state: PyTree) -> PyTree:
    """The optimizer state in which `swad_segments` begins a new interval; through any nesting.

    Raises:
      ValueError: there is no `swad_segments` in `opt_state`.
    """
    if not found(opt_state, SwadState):
        raise ValueError("next_segment: found no swad_segments in the optimizer state")

    def reset(node: Any) -> Any:
        return node._replace(n=jnp.zeros_like(node.n)) if isinstance(node, SwadState) else node

    return jax.tree.map(reset, opt_state, is_leaf=lambda node: isinstance(node, SwadState))


@method
def swad(
    segments: PyTree,
    val_losses: Sequence[float] | Array,
    *,
    n_converge: int = 3,
    n_tolerance: int = 6,
    tolerance_ratio: float = 0.3,
    reference_counts: bool = True,
) -> tuple[PyTree, list[int], int, int]:
    """The mean over the valley of the validation loss (arXiv:2102.08604, Algorithm 1). It runs on the host.

    The loss has converged at the first interval that is the least of `n_converge` in a row; the valley ends when all
    of `n_tolerance` in a row exceed (1 + tolerance_ratio) times the mean loss of the former.

    Args:
      segments: a list of trees, or one tree stacked on axis 0: the mean parameters of each evaluation interval.
      val_losses: the validation loss at the end of each interval.
      n_converge: >= 1.
      n_tolerance: >= 1.
      tolerance_ratio: >= 0.
      reference_counts: the weights of the authors' code, which counts the interval of convergence twice if
        n_tolerance > n_converge and mostly not at all otherwise; False: every interval of the valley once.

    Returns:
      The mean in the segments' dtypes, the weight of each interval, and the first and last interval of the valley.

    Raises:
      ValueError: a number out of its range, a loss that is NaN, another number of losses than of segments, a run that
        has not converged, trees that differ (the first leaf is named), or NaN in a segment of the valley.
    """
    number("n_converge", n_converge, "[1, inf)")
    number("n_tolerance", n_tolerance, "[1, inf)")
    number("tolerance_ratio", tolerance_ratio, "[0, inf)")
    group = several("segment", segments)
    losses = [float(loss) for loss in val_losses]
    if len(losses) != len(group.names):
        raise ValueError(f"swad: needs one validation loss for each of {len(group.names)} segments, got {len(losses)}")
    for i, loss in enumerate(losses):
        if math.isnan(loss):
            raise ValueError(f"swad: val_losses[{i}] is NaN")
    taken = _valley(losses, n_converge, n_tolerance, tolerance_ratio)
    start, end = taken[0], taken[-1]
    counts = [taken.count(i) if reference_counts else int(start <= i <= end) for i in range(len(losses))]
    chosen = [i for i, count in enumerate(counts) if count]
    trees = unstacked(group)
    valley = group._replace(
        names=tuple(group.names[i] for i in chosen), trees=tuple(trees[i] for i in chosen), form="list"
    )
    average = Matched(valley).merge(weighted_mean, weights=[float(counts[i]) for i in chosen])
    return average, counts, start, end


def _valley(losses: list[float], n_converge: int, n_tolerance: int, tolerance_ratio: float) -> list[int]:
    """The intervals in the order in which they enter the average."""
    converged = next(
        (q for q in range(len(losses) - n_converge + 1) if losses[q] == min(losses[q : q + n_converge])), None
    )
    if converged is None:
        raise ValueError(
            f"swad: the validation loss has not converged: none of its {len(losses)} values is the least of"
            f" n_converge={n_converge} in a row"
        )
    seen = converged + n_converge
    threshold = math.fsum(losses[converged:seen]) / n_converge * (1 + tolerance_ratio)
    taken = _before(losses, range(max(seen - n_tolerance, 0), seen), converged, n_converge, n_tolerance, threshold)

    oldest = max(seen - n_tolerance, 0)
    for i in range(seen, len(losses)):
        oldest = max(i + 1 - n_tolerance, 0)
        if oldest < converged:
            continue
        if min(losses[oldest : i + 1]) > threshold:
            return taken or [converged]
        taken.append(oldest)
    for i in range(oldest + 1, len(losses)):
        if min(losses[i:]) > threshold:
            break
        taken.append(i)
    return taken or [converged]


def _before(
    losses: list[float], window: range, converged: int, n_converge: int, n_tolerance: int, threshold: float
) -> list[int]:
    """What enters the average when the loss has converged; `window`: the last n_tolerance intervals."""
    if n_tolerance <= n_converge:
        return list(range(converged + 1, converged + 1 + n_converge - n_tolerance))
    first = window[: n_tolerance - n_converge + 1]
    last_above = max((i for i in first if losses[i] > threshold), default=first[0] - 1)
    return list(range(last_above + 2, first[-1] + 1))


PAPER = register(
    Paper(
        name="swad_segments",
        title="SWAD: Domain Generalization by Seeking Flat Minima",
        authors=(
            "Cha, Junbum",
            "Chun, Sanghyuk",
            "Lee, Kyungjae",
            "Cho, Han-Cheol",
            "Park, Seunghyun",
            "Lee, Yunsung",
            "Park, Sungrae",
        ),
        year=2021,
        arxiv="2102.08604",
        algorithm="Algorithm 1",
        kind="wrapper",
        make=swad_segments,
        states=(SwadState,),
        needs=("params",),
        floats_per_parameter=1,
    )
)
SELECTION = register(dataclasses.replace(PAPER, name="swad", kind="function", make=swad, states=(), needs=()))
