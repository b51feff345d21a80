"""Every method trains in a Flax Linen TrainState, by `apply_gradients` unless it needs more than gradients."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.training.train_state import TrainState
from jax import Array

import optax_zoo
from optax_zoo import Paper
from tests.frameworks.problem import INPUTS, STEPS, WIDTH, assert_lower, build, own, squared_error
from tests.laws.harness import law


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(1)(nn.tanh(nn.Dense(WIDTH)(x)))


def loss_of(state: TrainState) -> Callable[[Any], Array]:
    return lambda params: squared_error(state.apply_fn({"params": params}, INPUTS))


@jax.jit
def by_train_step(state: TrainState) -> TrainState:
    step = optax_zoo.train_step(loss_of(state), state.tx)
    params, opt_state, _ = step(state.params, state.opt_state)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


@jax.jit
def by_apply_gradients(state: TrainState) -> TrainState:
    return state.apply_gradients(grads=jax.grad(loss_of(state))(state.params))


@law(concerns=own)
def test_linen(paper: Paper) -> None:
    network = Network()
    params = network.init(jax.random.key(0), INPUTS)["params"]
    state = TrainState.create(apply_fn=network.apply, params=params, tx=build(paper))
    step = by_apply_gradients if set(paper.needs) <= {"params"} else by_train_step
    for _ in range(STEPS):
        state = step(state)
    assert int(state.step) == STEPS
    loss = loss_of(state)
    assert_lower(loss(optax_zoo.eval_params(state.opt_state, state.params)), loss(params))
