"""Ensemble of Averages: Improving Model Selection and Boosting Performance in Domain Generalization.

Devansh Arpit, Huan Wang, Yingbo Zhou, Caiming Xiong, 2021, arXiv:2110.10832, Section 3.
The simple moving average of the weights from early on is more stable under a shift of the domain than the weights.

Differs from the authors' code: nothing.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, averaging, steps
from optax_zoo._core.hyper import ScalarOrSchedule
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy
from optax_zoo._core.trees import PyTree


class SmaState(NamedTuple):
    """The mean and the state of the optimizer it watches."""

    count: Array  # steps taken
    mean: PerParameter  # averaged parameters
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "mean"

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean; the initial parameters before the first step."""
        del params
        return self.mean


@method
def with_sma(
    inner: optax.GradientTransformation, start: ScalarOrSchedule = 100, *, accumulator_dtype: DTypeLike = "float32"
) -> optax.GradientTransformationExtraArgs:
    """Keeps the mean of the parameters after the steps start - 1, start, ... of `inner` (arXiv:2110.10832).

    Read it with `optax_zoo.eval_params(opt_state, params)`; before step `start` it is a copy of the parameters.
    Running statistics are averaged too where they are among the parameters.

    Args:
      inner: the optimizer; its updates pass through unchanged.
      start: first step t = 1, 2, ... after which two points are averaged, >= 0; 0 is 1, which takes in the initial
        parameters.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: `start` < 0; in `update`, params are missing.
    """

    def step(h: Any, s: SmaState) -> dict[str, Array]:
        points = h.count + 3 - jnp.maximum(steps(h.start), 1)
        return {"take": 1.0 / jnp.maximum(points, 1).astype(h.t.dtype)}

    @averaging(inner, SmaState, hyper={"start": start}, step=step, mean=at_least(copy(), accumulator_dtype))
    def rule(p: Array, s: SmaState, h: Any) -> SmaState:
        return s._replace(mean=approach(s.mean, p, h.take))

    return rule


PAPER = register(
    Paper(
        name="with_sma",
        title="Ensemble of Averages: Improving Model Selection and Boosting Performance in Domain Generalization",
        authors=("Arpit, Devansh", "Wang, Huan", "Zhou, Yingbo", "Xiong, Caiming"),
        year=2021,
        arxiv="2110.10832",
        algorithm="Section 3",
        kind="wrapper",
        make=with_sma,
        states=(SmaState,),
        needs=("params",),
        floats_per_parameter=1,
        probe={"start": 2},
        scaled=lambda steps: {"start": steps // 6},
        golden=("sma.basic",),
    )
)
