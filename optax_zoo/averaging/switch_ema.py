"""Switch EMA: A Free Lunch for Better Flatness and Sharpness.

Siyuan Li, Zicheng Liu, Juanxi Tian, Ge Wang, Zedong Wang, Weiyang Jin, Di Wu, Cheng Tan, Tao Lin, Yang Liu, Baigui
Sun, Stan Z. Li, 2024, arXiv:2402.09240, Algorithm 1.
The moving average of the weights takes their place at the end of every epoch, so that training goes on from it.

Differs from the authors' code: nothing in their detection hook, whose `momentum` is 1 - decay. (Their classification
hook tests the interval the wrong way round.)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, redirecting, steps
from optax_zoo._core.hyper import ScalarOrSchedule, Schedule, StepSchedule, split_decay
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy
from optax_zoo._core.trees import PyTree


class SwitchEmaState(NamedTuple):
    """The average and the state of the optimizer it switches."""

    count: Array  # steps taken
    ema: PerParameter  # averaged parameters
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "ema"

    def eval_params(self, params: PyTree) -> PyTree:
        """The average."""
        del params
        return self.ema


@method
def switch_ema(
    inner: optax.GradientTransformation,
    decay: ScalarOrSchedule = 0.9998,
    *,
    switch_every: ScalarOrSchedule,
    switch_start: ScalarOrSchedule = 0,
    decay_fn: Schedule | None = None,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Switch EMA (arXiv:2402.09240, Algorithm 1): e <- decay e + (1 - decay) p, and now and then p <- e.

    The state of `inner` is not touched by a switch. Evaluate `optax_zoo.eval_params(opt_state, params)`. The updates
    must not be rescaled behind the wrapper.

    Args:
      inner: the optimizer, learning rate included.
      decay: in [0, 1]; a number, a schedule of the 0-based step, or a decay of t = 1, 2, ... such as
        `warmup_ema_decay(0.9998)`.
      switch_every: steps between two switches, >= 1: an epoch in the paper.
      switch_start: no switch at steps t with t - 1 <= switch_start, >= -1.
      decay_fn: takes the place of `decay`, a function of t = 1, 2, ...: a warm-up of the decay.
      accumulator_dtype: dtype of the average, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: a number out of its range; in `update`, params are missing.
      TypeError: `decay_fn` is not a function.
    """
    if decay_fn is not None and not callable(decay_fn):
        raise TypeError(f"switch_ema: decay_fn must be a function of t = 1, 2, ..., got {decay_fn!r}")
    if decay_fn is not None and not isinstance(decay_fn, StepSchedule):
        decay_fn = StepSchedule(decay_fn, f"{decay_fn!r}")

    def step(h: Any, s: SwitchEmaState) -> dict[str, Any]:
        switches = ((h.count + 1) % steps(h.switch_every) == 0) & (h.count > steps(h.switch_start))
        return {"switches": switches, "take": split_decay(h.decay).take}

    @redirecting(
        inner,
        SwitchEmaState,
        hyper={
            "decay": decay if decay_fn is None else decay_fn,
            "switch_every": switch_every,
            "switch_start": switch_start,
        },
        ranges={"switch_every": "[1, inf)", "switch_start": "[-1, inf)"},
        step=step,
        ema=at_least(copy(), accumulator_dtype),
    )
    def rule(after: Array, s: SwitchEmaState, h: Any, p: Array, u: Array) -> tuple[Array, SwitchEmaState]:
        ema = approach(s.ema, after, h.take)
        return jnp.where(h.switches, ema - p, u), s._replace(ema=ema)

    return rule


PAPER = register(
    Paper(
        name="switch_ema",
        title="Switch EMA: A Free Lunch for Better Flatness and Sharpness",
        authors=(
            "Li, Siyuan",
            "Liu, Zicheng",
            "Tian, Juanxi",
            "Wang, Ge",
            "Wang, Zedong",
            "Jin, Weiyang",
            "Wu, Di",
            "Tan, Cheng",
            "Lin, Tao",
            "Liu, Yang",
            "Sun, Baigui",
            "Li, Stan Z.",
        ),
        year=2024,
        arxiv="2402.09240",
        algorithm="Algorithm 1",
        kind="wrapper",
        make=switch_ema,
        states=(SwitchEmaState,),
        needs=("params",),
        floats_per_parameter=1,
        example={"decay": 0.99, "switch_every": 100},
        probe={"decay": 0.9, "switch_every": 3},
        golden=("switch_ema.basic",),
    )
)
