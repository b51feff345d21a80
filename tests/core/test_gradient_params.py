"""Where gradients are taken: found in the state through any nesting, and obeyed by `train_step`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from optax_zoo._core.averages import gradient_params
from tests.laws.harness import default_promotion

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.ones((2, 2), jnp.bfloat16)}


class AheadState(NamedTuple):
    velocity: Any

    PREDICTED = "velocity"

    def gradient_params(self, params: Any) -> Any:
        return jax.tree.map(lambda p, v: p.astype(jnp.float32) + v, params, self.velocity)


def ahead() -> optax.GradientTransformation:
    """SGD with rate 1 that asks for gradients one step further on."""

    def init(params: Any) -> AheadState:
        return AheadState(jax.tree.map(lambda p: jnp.zeros(p.shape), params))

    def update(updates: Any, state: AheadState, params: Any = None) -> Any:
        return jax.tree.map(jnp.negative, updates), AheadState(jax.tree.map(lambda g: -g.astype(jnp.float32), updates))

    return optax.GradientTransformation(init, update)


def moved() -> Any:
    return AheadState(jax.tree.map(lambda p: jnp.full(p.shape, 0.5), PARAMS))


@pytest.mark.parametrize(
    "nest", ["alone", "chain", "masked", "inject_hyperparams", "MultiSteps", "apply_if_finite", "with_ema"]
)
def test_found_through(nest: str) -> None:
    tx = {
        "alone": lambda tx: tx,
        "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
        "masked": lambda tx: optax.masked(tx, {"a": True, "b": True}),
        "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda scale: optax.chain(optax.scale(scale), tx))(
            1.0
        ),
        "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
        "with_ema": zoo.with_ema,
    }[nest](ahead())
    with default_promotion():
        state = optax.tree.set(tx.init(PARAMS), velocity=moved().velocity)
    found = gradient_params(state, PARAMS)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, PARAMS)
    np.testing.assert_allclose(found["a"], PARAMS["a"] + 0.5)


def test_leaves_out_of_its_sight_stay() -> None:
    state = optax.masked(ahead(), {"a": True, "b": False}).init(PARAMS)
    state = state._replace(inner_state=AheadState({"a": jnp.ones(2), "b": optax.MaskedNode()}))
    found = gradient_params(state, PARAMS)
    np.testing.assert_allclose(found["a"], PARAMS["a"] + 1)
    assert found["b"] is PARAMS["b"]


def test_ordinary_states_want_the_parameters() -> None:
    assert gradient_params(zoo.ademamix(0.1).init(PARAMS), PARAMS) is PARAMS


def test_other_parameters_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"gradient_params: params and .* must have the same tree structure"):
        gradient_params(moved(), {"a": PARAMS["a"]})


@pytest.mark.parametrize("has_aux", [False, True])
def test_a_training_step_evaluates_there_and_updates_the_parameters(has_aux: bool) -> None:
    def loss(params: Any) -> Any:
        value = 0.5 * jnp.sum(params["a"] ** 2)
        return (value, params["a"]) if has_aux else value

    params = {"a": PARAMS["a"]}
    state = AheadState({"a": jnp.array([1.0, 0.0])})
    after, state, value, *aux = zoo.train_step(loss, ahead(), has_aux=has_aux)(params, state)
    point = params["a"] + jnp.array([1.0, 0.0])
    np.testing.assert_allclose(value, 0.5 * jnp.sum(point**2))
    np.testing.assert_allclose(after["a"], params["a"] - point)
    for seen in aux:
        np.testing.assert_allclose(seen, point)
