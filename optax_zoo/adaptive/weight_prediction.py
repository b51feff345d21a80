"""XGrad: Boosting Gradient-Based Optimizers With Weight Prediction.

Lei Guan, Dongsheng Li, Yanqi Shi, Jian Meng, 2023, arXiv:2305.18240.
Every gradient is taken where the weights are predicted to be `num_steps` steps later if the last direction goes on.
The parameters being trained are the true weights, which alone are evaluated and exported (`optax_zoo.eval_params`
returns them); `predicted_params` is the point at which the caller evaluates loss and gradient.

Differs from the authors' code: nothing for "adamw" and "sgdm"; their Adam takes a weight decay and ignores it. With a
schedule the prediction uses the rate of the step to come, as theirs does after a scheduler's step.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.averages import evaluate, gradient_params
from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, choice, debias, ema, resolve
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros
from optax_zoo._core.trees import PyTree

Base = Literal["adam", "adamw", "sgdm"]


class WeightPredictionState(NamedTuple):
    """What the direction just used is recomputed from, and how far it is followed."""

    count: Array  # steps taken
    reach: Array  # next rate * num_steps
    bias1: Array  # of m
    bias2: Array  # of v
    eps: Array  # added to root
    m: PerParameter  # momentum or direction
    v: PerParameter = None  # second moment (adam)
    inner_state: Any = None  # of another base

    PREDICTED = "m"

    def gradient_params(self, params: PyTree) -> PyTree:
        """The point at which the gradient of the next step is taken; weight decay is not predicted."""
        if self.v is None:
            return evaluate(lambda m, p, h: p - h.reach * m, self.m, params, reach=self.reach)
        scalars = {name: getattr(self, name) for name in ("reach", "bias1", "bias2", "eps")}
        return evaluate(lambda m, p, v, h: p - h.reach * _adam(m, v, h), self.m, params, self.v, **scalars)


@method
def weight_prediction(
    learning_rate: ScalarOrSchedule,
    base: Base | optax.GradientTransformation = "adam",
    num_steps: ScalarOrSchedule = 1,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    momentum: ScalarOrSchedule = 0.9,
    dampening: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """XGrad (arXiv:2305.18240): the base optimizer, fed gradients at predicted weights.

    `optax_zoo.train_step` evaluates there. A loop of your own takes loss and gradient at
    `predicted_params(opt_state, params)` and updates `params` themselves.

    Args:
      learning_rate: step size, >= 0. The prediction uses that of the step to come; inside `inject_hyperparams` that of
        the last one.
      base: "adam", "adamw", "sgdm" (SGD with momentum), or any transformation that returns an ascent direction.
      num_steps: how many steps ahead the weights are predicted, >= 0; 0 is the base optimizer.
      b1: decay of Adam's first moment, in [0, 1).
      b2: decay of Adam's second moment, in [0, 1).
      eps: added to Adam's root.
      momentum: of "sgdm", in [0, 1).
      dampening: of "sgdm", in [0, 1): the gradient enters the momentum times 1 - dampening.
      weight_decay: for "adam" and "sgdm" an L2 penalty, otherwise decoupled and multiplied by the learning rate;
        None: 0.01 for "adamw", 0 otherwise.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; two numbers of state per parameter, one for "sgdm", one more than its own for another base.

    Raises:
      ValueError: a number out of its range, or an unknown `base`.
    """
    inner = base if isinstance(base, optax.GradientTransformation) else None
    if inner is None:
        choice("base", base, Base)
    is_adam = base in ("adam", "adamw")

    def step(h: Any, s: WeightPredictionState) -> dict[str, Any]:
        next_rate = resolve({"rate": learning_rate}, h.count + 1)["rate"]
        reach = {"reach": next_rate * jnp.asarray(h.num_steps, s.reach.dtype)}
        if not is_adam:
            return reach
        return {**reach, "bias1": debias(h.b1, h.t), "bias2": debias(h.b2, h.t), "eps": h.eps}

    hyper = {"num_steps": num_steps, "b1": b1, "b2": b2, "eps": eps, "momentum": momentum, "dampening": dampening}

    @leafwise(
        WeightPredictionState,
        hyper=hyper,
        ranges={"num_steps": "[0, inf)", "dampening": "[0, 1)"},
        step=step,
        reach=0.0,
        **dict.fromkeys(("bias1", "bias2", "eps"), 1.0 if is_adam else None),
        m=zeros(),
        v=squares() if is_adam else None,
    )
    def rule(g: Array, s: WeightPredictionState, h: Any) -> tuple[Array, WeightPredictionState]:
        if is_adam:
            m, v = ema(s.m, g, h.b1), ema(s.v, abs_sq(g), h.b2)
            return _adam(m, v, h), s._replace(m=m, v=v)
        m = h.momentum * s.m + (1.0 - h.dampening) * g if base == "sgdm" else g
        return m, s._replace(m=m)

    if weight_decay is None:
        weight_decay = 0.01 if base == "adamw" else 0.0
    direction = rule if inner is None else _following(inner, rule)
    return finish(direction, learning_rate, weight_decay, mask, decay="l2" if base in ("adam", "sgdm") else "lr")


def _adam(m: Array, v: Array, h: Any) -> Array:
    return (m / h.bias1) / (jnp.sqrt(v / h.bias2) + h.eps)


def _following(
    inner: optax.GradientTransformation, rule: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """`rule` on the direction of `inner`, with the state of `inner` as `inner_state`."""
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> WeightPredictionState:
        own: Any = rule.init(params)
        return own._replace(inner_state=inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        direction: PyTree
        direction, inner_state = inner.update(updates, state.inner_state, params, **extra)
        direction, state = rule.update(direction, state)
        return direction, state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


@method
def predicted_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The point at which loss and gradient of the next step must be evaluated.

    It is `params` before the first step, where the state has no weight prediction, and with `num_steps=0`.

    Args:
      opt_state: any optimizer state; found through any nesting.
      params: the true weights.

    Returns:
      A tree like `params`, in its dtypes.
    """
    return gradient_params(opt_state, params)


PAPER = register(
    Paper(
        name="weight_prediction",
        title="XGrad: Boosting Gradient-Based Optimizers With Weight Prediction",
        authors=("Guan, Lei", "Li, Dongsheng", "Shi, Yanqi", "Meng, Jian"),
        year=2023,
        arxiv="2305.18240",
        make=weight_prediction,
        states=(WeightPredictionState,),
        floats_per_parameter=2,
        breaks={"schedules": "the first step sees the schedule of learning_rate at 1"},
        golden=("weight_prediction.adam", "weight_prediction.adamw_s2", "weight_prediction.sgdm"),
    )
)
