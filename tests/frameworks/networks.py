"""The same small regression as users of each framework write it: `train(tx) -> (loss before, loss after)`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

import optax_zoo

STEPS = 8
WIDTH = 4
INPUTS = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(6, 2)
TARGETS = np.sin(3.0 * INPUTS).sum(axis=1, keepdims=True)

Losses = tuple[jax.Array, jax.Array]

as_arrays = getattr(nnx, "as_pure", None) or nnx.pure  # nnx.pure before Flax 0.12.7


def squared_error(predictions: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(predictions - TARGETS))


def fit(loss_fn: Callable[[Any], jax.Array], params: Any, tx: optax.GradientTransformation) -> Losses:
    step = jax.jit(optax_zoo.train_step(loss_fn, tx))
    trained, opt_state = params, tx.init(params)
    for _ in range(STEPS):
        trained, opt_state, _ = step(trained, opt_state)
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    return loss_fn(params), loss_fn(optax_zoo.eval_params(opt_state, trained))


def equinox(tx: optax.GradientTransformation) -> Losses:
    model = eqx.nn.MLP(2, 1, WIDTH, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return fit(lambda params: squared_error(jax.vmap(eqx.combine(params, static))(INPUTS)), params, tx)


def haiku(tx: optax.GradientTransformation) -> Losses:
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([WIDTH, 1])(x)))
    params = hk.data_structures.to_immutable_dict(network.init(jax.random.key(0), INPUTS))
    return fit(lambda params: squared_error(network.apply(params, INPUTS)), params, tx)


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.tanh(nn.Dense(WIDTH)(x)))


def linen(tx: optax.GradientTransformation, *, apply_gradients: bool = False) -> Losses:
    network = LinenNetwork()
    first = TrainState.create(
        apply_fn=network.apply, params=network.init(jax.random.key(0), INPUTS)["params"], tx=tx
    )

    def loss_fn(params: Any) -> jax.Array:
        return squared_error(network.apply({"params": params}, INPUTS))

    @jax.jit
    def step(state: TrainState) -> TrainState:
        if apply_gradients:
            return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))
        params, opt_state, _ = optax_zoo.train_step(loss_fn, state.tx)(state.params, state.opt_state)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    state = first
    for _ in range(STEPS):
        state = step(state)
    assert int(state.step) == STEPS
    return loss_fn(first.params), loss_fn(optax_zoo.eval_params(state.opt_state, state.params))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(2, WIDTH, rngs=rngs)
        self.readout = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.readout(nnx.tanh(self.hidden(x)))


def nnx_optimizer(tx: optax.GradientTransformation) -> Losses:
    network = NnxNetwork(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)
    before = squared_error(network(INPUTS))

    @nnx.jit
    def step(network: NnxNetwork, optimizer: nnx.Optimizer) -> None:
        graphdef, params, rest = nnx.split(network, nnx.Param, ...)
        given = optax_zoo.closures(lambda at: squared_error(nnx.merge(graphdef, at, rest)(INPUTS)), params)
        optimizer.update(network, given["grad"], **given)

    for _ in range(STEPS):
        step(network, optimizer)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    evaluated = optax_zoo.eval_params(as_arrays(optimizer.opt_state), as_arrays(params))
    return before, squared_error(nnx.merge(graphdef, evaluated, rest)(INPUTS))


def nnx_split(tx: optax.GradientTransformation) -> Losses:
    graphdef, params, rest = nnx.split(NnxNetwork(nnx.Rngs(0)), nnx.Param, ...)
    return fit(lambda at: squared_error(nnx.merge(graphdef, at, rest)(INPUTS)), params, tx)


FRAMEWORKS: dict[str, Callable[[optax.GradientTransformation], Losses]] = {
    "equinox": equinox,
    "haiku": haiku,
    "linen": linen,
    "nnx.Optimizer": nnx_optimizer,
    "nnx.split": nnx_split,
}
