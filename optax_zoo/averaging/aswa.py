"""On Model Stability as a Function of Random Seed.

Pranava Madhyastha, Rishabh Jain, 2019, arXiv:1909.10447, Algorithms 1 and 2 (ASWA and NASWA).
The mean of all iterates takes the place of the weights at the end of every epoch; with the norm filter it takes in only
iterates that lie farther from it than those it has turned away since the last.

Differs from the authors' code, which differs from the paper: as in the paper the mean is copied, not swapped with the
weights, the norm is that of all weights, and the first iterate counts once; as in the code n counts the iterates that
were taken in, where the paper divides by 0 at its first step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, redirecting, steps
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy
from optax_zoo._core.trees import PyTree


class AswaState(NamedTuple):
    """The mean, how far off the iterates turned away were, and the state of the optimizer."""

    count: Array  # steps taken
    n: Array  # iterates in the mean
    switched: Array | None  # 1 at the mean
    norm_sum: Array | None  # of distances since acceptance
    norm_count: Array | None  # number of them
    mean: PerParameter  # averaged parameters
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "mean"

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean; the initial parameters before the first step."""
        del params
        return self.mean


@method
def aswa(
    inner: optax.GradientTransformation,
    switch_every: ScalarOrSchedule,
    *,
    norm_filter: bool = False,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Aggressive stochastic weight averaging (arXiv:1909.10447, Algorithm 1; with `norm_filter` Algorithm 2).

    Evaluate `optax_zoo.eval_params(opt_state, params)`, the mean of the iterates before their steps. The updates must
    not be rescaled behind the wrapper, and `inner` keeps its state at a switch.

    Args:
      inner: the optimizer, learning rate included.
      switch_every: steps between two switches of the parameters to the mean, >= 1: an epoch in the paper.
      norm_filter: takes an iterate in only if it lies farther from the mean than, on average, the last one taken in
        and those turned away since; a switch forgets them.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: `switch_every` < 1; in `update`, params are missing.
    """

    def sums(after: Array, s: AswaState, h: Any, p: Array) -> dict[str, Array]:
        return {"squared_distance": jnp.sum(abs_sq(p - s.mean))}

    def step(h: Any, s: Any) -> dict[str, Any]:
        switches = (h.count + 1) % steps(h.switch_every) == 0
        if not norm_filter:
            return {"accepts": True, "n": s.n + 1.0, "switches": switches}
        norm = jnp.where(s.switched > 0, 0.0, jnp.sqrt(h.squared_distance).astype(s.n.dtype))
        accepts = (h.count == 0) | (norm * jnp.maximum(s.norm_count, 1.0) > s.norm_sum)
        rejects = jnp.logical_not(accepts) & (norm > 0)
        norm_sum = jnp.where(accepts, norm, s.norm_sum + jnp.where(rejects, norm, 0.0))
        norm_count = jnp.where(accepts, 1.0, s.norm_count + jnp.where(rejects, 1.0, 0.0))
        return {
            "accepts": accepts,
            "n": s.n + jnp.where(accepts, 1.0, 0.0),
            "switches": switches,
            "switched": switches,
            "norm_sum": jnp.where(switches, 0.0, norm_sum),
            "norm_count": jnp.where(switches, 0.0, norm_count),
        }

    @redirecting(
        inner,
        AswaState,
        hyper={"switch_every": switch_every},
        ranges={"switch_every": "[1, inf)"},
        sums=sums if norm_filter else None,
        step=step,
        n=0.0,
        switched=1.0 if norm_filter else None,
        norm_sum=0.0 if norm_filter else None,
        norm_count=0.0 if norm_filter else None,
        mean=at_least(copy(), accumulator_dtype),
    )
    def rule(after: Array, s: AswaState, h: Any, p: Array, u: Array) -> tuple[Array, AswaState]:
        mean = jnp.where(h.accepts, approach(s.mean, p, 1.0 / h.n), s.mean)
        return jnp.where(h.switches, mean - p, u), s._replace(mean=mean)

    return rule


@method
def naswa(
    inner: optax.GradientTransformation,
    switch_every: ScalarOrSchedule,
    *,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Norm-filtered aggressive stochastic weight averaging (arXiv:1909.10447, Algorithm 2).

    It is `aswa` with `norm_filter=True`.

    Args:
      inner: the optimizer, learning rate included.
      switch_every: steps between two switches of the parameters to the mean, >= 1: an epoch in the paper.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: `switch_every` < 1; in `update`, params are missing.
    """
    return aswa(inner, switch_every, norm_filter=True, accumulator_dtype=accumulator_dtype)


def _paper(name: str, algorithm: str, make: Callable[..., Any], golden: tuple[str, ...], elementwise: bool) -> Paper:
    return register(
        Paper(
            name=name,
            title="On Model Stability as a Function of Random Seed",
            authors=("Madhyastha, Pranava", "Jain, Rishabh"),
            year=2019,
            arxiv="1909.10447",
            algorithm=algorithm,
            kind="wrapper",
            make=make,
            states=(AswaState,),
            needs=("params",),
            floats_per_parameter=1,
            elementwise=elementwise,
            relative_learning_rate=4.0,
            example={"switch_every": 100},
            probe={"switch_every": 5},
            golden=golden,
        )
    )


ASWA = _paper("aswa", "Algorithm 1", aswa, ("aswa.basic", "naswa.basic"), elementwise=True)
NASWA = _paper("naswa", "Algorithm 2", naswa, (), elementwise=False)
