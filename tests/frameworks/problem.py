"""One small regression, trained with each framework's own parameter containers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import optax_zoo
from optax_zoo import Paper
from tests.laws import harness

STEPS = 5
RATE = 1e-4
WIDTH = 4
INPUTS = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(6, 2)
TARGETS = np.sin(3.0 * INPUTS).sum(axis=1, keepdims=True)


def own(paper: Paper) -> bool:
    """Optax answers for its methods in these frameworks itself."""
    return paper.library == "optax_zoo"


def build(paper: Paper) -> optax.GradientTransformationExtraArgs:
    return harness.build(paper, RATE * paper.relative_learning_rate)


def squared_error(predictions: Array) -> Array:
    return jnp.mean(jnp.square(predictions - TARGETS))


def assert_trains(loss_fn: Callable[[Any], Array], params: Any, tx: optax.GradientTransformation) -> None:
    """A jitted `train_step` lowers the loss of the parameters to evaluate and keeps their containers."""
    step = jax.jit(optax_zoo.train_step(loss_fn, tx))
    trained, opt_state = params, tx.init(params)
    for _ in range(STEPS):
        trained, opt_state, _ = step(trained, opt_state)
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert_lower(loss_fn(optax_zoo.eval_params(opt_state, trained)), loss_fn(params))


def assert_lower(after: Array, before: Array) -> None:
    assert np.isfinite(after)
    assert float(after) < float(before)
