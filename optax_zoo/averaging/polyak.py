"""Acceleration of Stochastic Approximation by Averaging.

Boris T. Polyak, Anatoli B. Juditsky, 1992, SIAM Journal on Control and Optimization 30(4), equation (2).
The uniform mean of the iterates of SGD with long steps reaches the optimal rate without knowing the Hessian.

Differs from the authors' code: there is none.
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


class PolyakState(NamedTuple):
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
def with_polyak(
    inner: optax.GradientTransformation,
    start: ScalarOrSchedule = 0,
    *,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Keeps the uniform mean of the parameters after the steps start + 1, start + 2, ... of `inner`.

    Read it with `optax_zoo.eval_params(opt_state, params)`; up to step `start` it is a copy of the parameters.

    Args:
      inner: the optimizer; its updates pass through unchanged.
      start: steps left out of the mean, >= 0.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: `start` < 0; in `update`, params are missing.
    """

    def step(h: Any, s: PolyakState) -> dict[str, Array]:
        points = jnp.maximum(h.count + 1 - steps(h.start), 1)
        return {"take": 1.0 / points.astype(h.t.dtype)}

    @averaging(inner, PolyakState, hyper={"start": start}, step=step, mean=at_least(copy(), accumulator_dtype))
    def rule(p: Array, s: PolyakState, h: Any) -> PolyakState:
        return s._replace(mean=approach(s.mean, p, h.take))

    return rule


PAPER = register(
    Paper(
        name="with_polyak",
        title="Acceleration of Stochastic Approximation by Averaging",
        authors=("Polyak, Boris T.", "Juditsky, Anatoli B."),
        year=1992,
        url="https://doi.org/10.1137/0330046",
        make=with_polyak,
        kind="wrapper",
        states=(PolyakState,),
        needs=("params",),
        floats_per_parameter=1,
        scaled=lambda steps: {},
    )
)
