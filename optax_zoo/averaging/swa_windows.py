"""Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations: averages of a constant-rate run.

Alexander Hägele, Elie Bakouch, Atli Kosson, Loubna Ben Allal, Leandro Von Werra, Martin Jaggi, 2024,
arXiv:2405.18392, Section 4.
At a constant learning rate the mean of the weights over recent windows of the run comes close to a cooldown from every
point of it, and how many windows are best is found afterwards.

Differs from the authors' code: the last windows are kept in the state, not on disk.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, averaging, eval_params, steps
from optax_zoo._core.hyper import ScalarOrSchedule, number
from optax_zoo._core.lookup import found
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.ring import Ring, Snapshots, mean_of
from optax_zoo._core.slots import PerParameter, wide_zeros
from optax_zoo._core.trees import PyTree


class SwaWindowsState(NamedTuple):
    """The current window, the last ones, and the state of the optimizer it watches."""

    count: Array  # steps taken
    finished: Array  # windows finished
    recent: Array  # windows to evaluate
    mean: PerParameter  # of this window
    ring: Snapshots  # means of windows
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "mean"

    @property
    def available(self) -> Array:
        """How many finished windows are kept."""
        return jnp.minimum(self.finished, float(len(self.ring)))

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean of the `recent` last windows; `params` before the first one is finished."""
        newest = (self.finished - 1).astype(jnp.int32) % len(self.ring)
        count = jnp.maximum(jnp.minimum(self.available, self.recent), 1.0)
        mean = mean_of(self.ring, newest, count.astype(jnp.int32))
        return jax.tree.map(lambda m, p: jnp.where(self.finished > 0, m, p.astype(m.dtype)), mean, params)


@method
def with_swa_windows(
    inner: optax.GradientTransformation,
    horizon: ScalarOrSchedule = 500,
    interval: ScalarOrSchedule = 5,
    windows: int = 5,
    *,
    host: bool = False,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Weight averages of a run at a constant learning rate (arXiv:2405.18392): the means of its last windows.

    A window is `horizon` steps; of it the points after its steps 1, 1 + interval, ... are averaged.
    `optax_zoo.eval_params(opt_state, params)` is the mean of all windows that are kept, `best_windows` finds how many
    of them are best. Batch statistics belong to the weights they were measured at: recompute them before evaluating.

    Args:
      inner: the optimizer, its learning rate constant after a warm-up; its updates pass through unchanged.
      horizon: steps of a window, >= 1.
      interval: steps between two points, >= 1; divides `horizon`.
      windows: windows that are kept, >= 1.
      host: the finished windows are kept in the memory of the host; see `with_lawa`.
      accumulator_dtype: dtype of the means, or the parameter's own where that is wider.

    Returns:
      The optimizer with windows + 1 more numbers of state per parameter.

    Raises:
      ValueError: a number out of its range, or an `interval` that does not divide `horizon`; in `init`, `host` on a
        backend without host memory; in `update`, params are missing.
    """
    number("windows", windows, "[1, inf)")
    if isinstance(horizon, int) and isinstance(interval, int) and interval > 0 and horizon % interval:
        raise ValueError(f"with_swa_windows: interval must divide horizon, got {interval} and {horizon}")
    slot = at_least(wide_zeros(), accumulator_dtype)
    ring = Ring(slot, host)

    def step(h: Any, s: SwaWindowsState) -> dict[str, Array]:
        length, every = map(steps, (h.horizon, h.interval))
        points = (h.count % length) // every + 1
        ends = (h.count + 1) % length == 0
        return {
            "take": jnp.where(h.count % every == 0, 1.0 / points.astype(h.t.dtype), 0.0),
            "finished": s.finished + jnp.where(ends, 1.0, 0.0),
        }

    @averaging(
        inner,
        SwaWindowsState,
        hyper={"horizon": horizon, "interval": interval},
        ranges={"horizon": "[1, inf)", "interval": "[1, inf)"},
        step=step,
        finished=0.0,
        recent=lambda: jnp.asarray(windows),
        mean=slot,
    )
    def window(p: Array, s: SwaWindowsState, h: Any) -> SwaWindowsState:
        return s._replace(mean=approach(s.mean, p, h.take))

    def init(params: PyTree) -> Any:
        own: Any = window.init(params)
        return own._replace(ring=ring.init(params, windows))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        before = state.finished
        own: Any
        updates, own = window.update(updates, state, params, **extra)
        snapshots = jax.lax.cond(
            own.finished > before,
            lambda snapshots, mean: ring.push(snapshots, before.astype(jnp.int32) % len(snapshots), mean),
            lambda snapshots, _: snapshots,
            ring.settle(own.ring, own.mean),
            own.mean,
        )
        return updates, own._replace(ring=snapshots)

    return optax.GradientTransformationExtraArgs(init, update)


@method
def best_windows(opt_state: PyTree, params: PyTree, score_fn: Callable[[PyTree], Any]) -> tuple[PyTree, int]:
    """The mean of the best number of recent windows of `with_swa_windows`. It runs on the host.

    Args:
      opt_state: an optimizer state with `with_swa_windows` in it.
      params: the parameters being trained, from which leaves without an average are taken.
      score_fn: score of a tree on held-out data, higher is better; called once for each number of windows.

    Returns:
      The mean, a tree like `params`, and the number of windows in it; of equal scores the smallest.

    Raises:
      ValueError: no `with_swa_windows`, no window finished yet, or a score that is NaN.
    """
    states = found(opt_state, SwaWindowsState)
    if not states:
        raise ValueError("best_windows: found no with_swa_windows in the optimizer state")
    available = int(max(state.available for state in states))
    if not available:
        raise ValueError(f"best_windows: no window is finished after {int(states[0].count)} steps")
    best, chosen, best_score = params, 0, -math.inf
    for n in range(1, available + 1):
        candidate = eval_params(_limited(opt_state, n), params)
        score = float(score_fn(candidate))
        if math.isnan(score):
            raise ValueError(f"best_windows: score_fn of the last {n} windows is NaN")
        if score > best_score or not chosen:
            best, chosen, best_score = candidate, n, score
    return best, chosen


def _limited(opt_state: PyTree, n: int) -> PyTree:
    """The state whose `eval_params` averages the last `n` windows."""

    def limit(node: Any) -> Any:
        return node._replace(recent=jnp.full_like(node.recent, n)) if isinstance(node, SwaWindowsState) else node

    return jax.tree.map(limit, opt_state, is_leaf=lambda node: isinstance(node, SwaWindowsState))


PAPER = register(
    Paper(
        name="with_swa_windows",
        title="Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
        authors=(
            "Hägele, Alexander",
            "Bakouch, Elie",
            "Kosson, Atli",
            "Ben Allal, Loubna",
            "Von Werra, Leandro",
            "Jaggi, Martin",
        ),
        year=2024,
        arxiv="2405.18392",
        algorithm="Section 4",
        kind="wrapper",
        make=with_swa_windows,
        states=(SwaWindowsState,),
        needs=("params",),
        floats_per_parameter=3,
        example={"horizon": 2, "interval": 1, "windows": 2},
        scaled=lambda steps: {"horizon": 5 * max(steps // 100, 1), "interval": max(steps // 100, 1)},
    )
)
