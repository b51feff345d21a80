"""Regularizing and Optimizing LSTM Language Models.

Stephen Merity, Nitish Shirish Keskar, Richard Socher, 2017, arXiv:1708.02182, Algorithm 1 (NT-ASGD).
SGD at a constant rate that begins to average its iterates once the validation metric is worse than it was some checks
ago, and then never stops.

Differs from the authors' code: nothing with `drop_first=True`, which is PyTorch's ASGD; the paper averages from the
first iterate behind the trigger. (Their rate is also scaled by the length of each sequence.)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, evaluate
from optax_zoo._core.hyper import ScalarOrSchedule, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, wide_zeros
from optax_zoo._core.trees import PyTree


class NtAsgdState(NamedTuple):
    """The metrics seen, the trigger, and the mean since then."""

    count: Array  # steps taken
    triggered: Array  # 1 once averaging
    averaged: Array  # steps since the trigger
    metrics: Array  # number of metrics seen
    older: Array  # least before `recent`
    recent: Array  # the last, circular
    mean: PerParameter  # averaged parameters

    AVERAGED = "mean"

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean; `params` before the trigger."""
        return evaluate(
            lambda mean, p, h: jnp.where(h.averaged > 0, mean, p), self.mean, params, averaged=self.averaged
        )


@method
def nt_asgd(
    learning_rate: ScalarOrSchedule,
    *,
    nonmono: int = 5,
    weight_decay: ScalarOrSchedule = 0.0,
    drop_first: bool = True,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Non-monotonically triggered averaged SGD (arXiv:1708.02182, Algorithm 1).

    `update(grads, state, params, value=metric)` shows it a metric, best a validation loss, at the steps where there is
    one; NaN or no `value` is no check. It triggers on a metric above the least of all but the last `nonmono` before it.
    (`optax_zoo.train_step` passes the training loss at every step.) Evaluate
    `optax_zoo.eval_params(opt_state, params)`.

    Args:
      learning_rate: step size, >= 0; constant in the paper.
      nonmono: checks that the metric may take to improve, >= 0.
      weight_decay: L2 coefficient, added to the gradient.
      drop_first: the first iterate behind the trigger is dropped when the third comes, as PyTorch's ASGD does.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer, which needs params; one number of state per parameter.

    Raises:
      ValueError: a number out of its range; in `update`, params are missing.
    """
    number("nonmono", nonmono, "[0, inf)")

    def step(h: Any, s: NtAsgdState) -> dict[str, Array]:
        on = s.triggered > 0
        averaged = s.averaged + s.triggered
        points = averaged - 1.0 if drop_first else averaged
        metric = jnp.asarray(h.value, s.older.dtype)
        checks = jnp.logical_not(on | jnp.isnan(metric))
        worse = checks & (metric > s.older)  # inf until enough were seen
        oldest = s.metrics.astype(jnp.int32) % s.recent.size
        becomes_old = jnp.where(jnp.asarray(h.nonmono) > 0, s.recent[oldest], metric)
        return {
            "triggered": jnp.where(worse, 1.0, s.triggered),
            "averaged": averaged,
            "metrics": s.metrics + jnp.where(checks, 1.0, 0.0),
            "older": jnp.where(checks, jnp.minimum(s.older, becomes_old), s.older),
            "recent": s.recent.at[oldest].set(jnp.where(checks, metric, s.recent[oldest])),
            "on": on,
            "take": 1.0 / jnp.maximum(points, 1.0),
        }

    @leafwise(
        NtAsgdState,
        hyper={"learning_rate": learning_rate, "weight_decay": weight_decay, "nonmono": nonmono},
        step=step,
        needs=("value",),
        triggered=0.0,
        averaged=0.0,
        metrics=0.0,
        older=jnp.inf,
        recent=lambda: jnp.full(max(int(nonmono), 1), jnp.inf),
        mean=at_least(wide_zeros(), accumulator_dtype),
    )
    def rule(g: Array, s: NtAsgdState, h: Any, p: Array) -> tuple[Array, NtAsgdState]:
        u = -h.learning_rate * (g + h.weight_decay * p)
        return u, s._replace(mean=jnp.where(h.on, approach(s.mean, p + u, h.take), s.mean))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, value: Any = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        return rule.update(updates, state, params, value=jnp.nan if value is None else value, **extra)

    return optax.GradientTransformationExtraArgs(rule.init, update)


PAPER = register(
    Paper(
        name="nt_asgd",
        title="Regularizing and Optimizing LSTM Language Models",
        authors=("Merity, Stephen", "Keskar, Nitish Shirish", "Socher, Richard"),
        year=2017,
        arxiv="1708.02182",
        algorithm="Algorithm 1",
        make=nt_asgd,
        states=(NtAsgdState,),
        needs=("params",),
        floats_per_parameter=1,
        relative_learning_rate=100.0,
        probe={"nonmono": 0},
        golden=("nt_asgd.basic",),
    )
)
