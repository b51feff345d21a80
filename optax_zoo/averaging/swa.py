"""Averaging Weights Leads to Wider Optima and Better Generalization.

Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson, 2018, arXiv:1803.05407,
Algorithm 1.
The mean of the points that a high constant or a cyclical learning rate visits lies in a wider optimum than they.

Differs from the authors' code: nothing. (torchcontrib's automatic mode collects at steps > start with
step % freq == 0 instead.)
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, averaging, evaluate
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, as_scalar, check_range, choice, number, scalar_dtype
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, wide_zeros
from optax_zoo._core.trees import PyTree

Anneal = Literal["cos", "linear"]


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
        first, every = (jnp.asarray(value, jnp.int32) for value in (h.start, h.freq))
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


@method
def swa_lr_schedule(lr_init: Scalar, swa_lr: Scalar, swa_start: Scalar) -> optax.Schedule:
    """The authors' rate: `lr_init`, from half of `swa_start` linearly down to `swa_lr`, reached at 0.9 of it.

    Args:
      lr_init: first rate, >= 0.
      swa_lr: last rate, >= 0.
      swa_start: where averaging starts, > 0, in the unit of the count: epochs in the paper, else steps.

    Returns:
      A schedule of the 0-based count.
    """
    first, last = number("lr_init", lr_init, "[0, inf)"), number("swa_lr", swa_lr, "[0, inf)")
    end = number("swa_start", swa_start, "(0, inf)")

    def rate(count: Any) -> Array:
        return _between(first, last, jnp.clip((_float(count) / _float(end) - 0.5) / 0.4, 0.0, 1.0))

    return rate


@method
def cyclic_lr(alpha1: Scalar, alpha2: Scalar, c: Scalar) -> optax.Schedule:
    """The cyclical rate of SWA, sawteeth that fall from `alpha1` and end at `alpha2`.

    At step i = 1, 2, ... it is (1 - tau) alpha1 + tau alpha2 with tau = ((i - 1) mod c + 1) / c.

    Args:
      alpha1: rate from which each cycle falls, >= 0.
      alpha2: rate of the last step of each cycle, >= 0.
      c: steps in a cycle, >= 1; collect with `with_swa(inner, start=c, freq=c)`.

    Returns:
      A schedule of the 0-based count i - 1.
    """
    first, last = number("alpha1", alpha1, "[0, inf)"), number("alpha2", alpha2, "[0, inf)")
    cycle = number("c", c, "[1, inf)")
    return lambda count: _between(first, last, (jnp.mod(_float(count), _float(cycle)) + 1.0) / _float(cycle))


@method
def swalr(
    swa_lr: Scalar,
    anneal_steps: Scalar = 10,
    anneal: Anneal = "cos",
    *,
    lr_init: ScalarOrSchedule,
    start: Scalar = 0,
) -> optax.Schedule:
    """`torch.optim.swa_utils.SWALR`: from the rate reached at `start` to `swa_lr` in `anneal_steps` steps.

    Args:
      swa_lr: last rate, >= 0.
      anneal_steps: steps of the way, >= 0.
      anneal: "linear", or "cos" for half a wave of the cosine.
      lr_init: the rate before, a number or a schedule; followed up to `start` and annealed from there.
      start: 0-based count at which annealing starts, >= 0.

    Returns:
      A schedule of the 0-based count.

    Raises:
      ValueError: a number out of its range or an unknown `anneal`.
    """
    choice("anneal", anneal, Anneal)
    check_range("lr_init", lr_init, "[0, inf)")
    last, begin = number("swa_lr", swa_lr, "[0, inf)"), number("start", start, "[0, inf)")
    steps = number("anneal_steps", anneal_steps, "[0, inf)")

    def rate(count: Any) -> Array:
        before = jnp.minimum(jnp.asarray(count), jnp.asarray(begin, jnp.result_type(count)))
        current = lr_init(before) if callable(lr_init) else lr_init
        since, whole = _float(count) - _float(begin), _float(steps)
        done = jnp.clip(since / jnp.where(whole > 0, whole, 1.0), 0.0, 1.0)
        done = jnp.where((whole == 0) & (since >= 0), 1.0, done)
        return _between(current, last, done if anneal == "linear" else (1.0 - jnp.cos(jnp.pi * done)) / 2.0)

    return rate


def _between(first: Any, last: Scalar, weight: Array) -> Array:
    return (1.0 - weight) * as_scalar(first) + weight * as_scalar(last)


def _float(count: Any) -> Array:
    return jnp.asarray(count, scalar_dtype())


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
        golden=("swa.basic",),
    )
)
