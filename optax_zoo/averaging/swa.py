"""Averaging Weights Leads to Wider Optima and Better Generalization.

Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson, 2018, arXiv:1803.05407,
Algorithm 1.
The mean of the points that a high constant or a cyclical learning rate visits lies in a wider optimum than they.

Differs from the authors' code: nothing. (torchcontrib's automatic mode collects at steps > start with
step % freq == 0 instead.)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, averaging, evaluate, steps
from optax_zoo._core.hyper import ScalarOrSchedule
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, wide_zeros
from optax_zoo._core.trees import PyTree


class SwaState(NamedTuple):
    """The mean and the state of the optimizer it watches."""

    count: Array  # steps taken
    n: Array  # points collected
    mean: PerParameter  # averaged parameters
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "mean"

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean of the points collected; `params` before the first one."""
        return evaluate(lambda mean, p, h: jnp.where(h.n > 0, mean, p), self.mean, params, n=self.n)


@method
def with_swa(
    inner: optax.GradientTransformation,
    start: ScalarOrSchedule,
    freq: ScalarOrSchedule = 1,
    *,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Stochastic weight averaging (arXiv:1803.05407): the mean of the points at steps start, start + freq, ...

    Read it with `optax_zoo.eval_params(opt_state, params)`. Batch statistics belong to the weights they were
    measured at: recompute them before evaluating the mean.

    Args:
      inner: the optimizer, whose learning rate stays high or cycles (`swa_lr_schedule`, `cyclic_lr`, `swalr`);
        its updates pass through unchanged.
      start: first step t = 1, 2, ... whose parameters are collected.
      freq: steps between two points, >= 1: an epoch, or a cycle of the learning rate, at whose end it is lowest.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: a number out of its range; in `update`, params are missing.
    """

    def step(h: Any, s: SwaState) -> dict[str, Array]:
        first, every = map(steps, (h.start, h.freq))
        since = h.count + 1 - first
        n = s.n + 1.0
        collects = (since >= 0) & (since % every == 0)
        return {"n": jnp.where(collects, n, s.n), "take": jnp.where(collects, 1.0 / n, 0.0)}

    @averaging(
        inner,
        SwaState,
        hyper={"start": start, "freq": freq},
        step=step,
        n=0.0,
        mean=at_least(wide_zeros(), accumulator_dtype),
    )
    def rule(p: Array, s: SwaState, h: Any) -> SwaState:
        return s._replace(mean=approach(s.mean, p, h.take))

    return rule


PAPER = register(
    Paper(
        name="with_swa",
        title="Averaging Weights Leads to Wider Optima and Better Generalization",
        authors=(
            "Izmailov, Pavel",
            "Podoprikhin, Dmitrii",
            "Garipov, Timur",
            "Vetrov, Dmitry",
            "Wilson, Andrew Gordon",
        ),
        year=2018,
        arxiv="1803.05407",
        algorithm="Algorithm 1",
        make=with_swa,
        kind="wrapper",
        states=(SwaState,),
        needs=("params",),
        floats_per_parameter=1,
        example={"start": 1},
        scaled=lambda steps: {"start": max(3 * steps // 4, 1), "freq": max(steps // 40, 1)},
        golden=("swa.basic",),
    )
)
