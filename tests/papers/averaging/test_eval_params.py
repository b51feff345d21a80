"""The weights to evaluate are found through any nesting of optax's combinators, for every averaging method."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.laws.harness import default_promotion

METHODS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "with_ema": lambda: zoo.with_ema(optax.sgd(0.1), 0.7),
    "with_ema debiased": lambda: zoo.with_ema(optax.sgd(0.1), 0.7, init="zeros", debias=True),
    "with_polyak": lambda: zoo.with_polyak(optax.sgd(0.1)),
    "with_swa": lambda: zoo.with_swa(optax.sgd(0.1), 2),
    "schedule_free": lambda: zoo.schedule_free(optax.sgd(0.1), 0.1),
    "schedule_free_sgd": lambda: zoo.schedule_free_sgd(0.1),
}

NESTINGS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda tx: optax.chain(optax.clip(10.0), tx),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(10.0)), ("tx", tx)),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": True}),
    "partition": lambda tx: optax.partition({"all": tx}, {"a": "all", "b": "all"}),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda scale: optax.chain(optax.scale(scale), tx))(1.0),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "deep": lambda tx: optax.apply_if_finite(optax.masked(optax.chain(optax.identity(), tx), True), 3),
}

PARAMS = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}


def run(tx: optax.GradientTransformation, params: Any = PARAMS, steps: int = 4) -> tuple[Any, Any]:
    """Parameters and state after some steps with gradients that depend on the step."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(steps):
        updates, state = update(jax.tree.map(lambda p, i=i: jnp.cos(p + i), params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_found_through(nesting: str, method: str) -> None:
    params, state = run(METHODS[method]())
    expected = zoo.eval_params(state, params)
    assert not np.allclose(expected["a"], params["a"])
    with default_promotion():
        params, state = run(NESTINGS[nesting](METHODS[method]()))
        averaged = jax.jit(zoo.eval_params)(state, params)
    jax.tree.map(lambda ours, alone: np.testing.assert_allclose(ours, alone, rtol=1e-5), averaged, expected)


@pytest.mark.parametrize("method", METHODS)
def test_leaves_without_an_average_come_from_the_parameters(method: str) -> None:
    params, state = run(METHODS[method]())
    expected = zoo.eval_params(state, params)
    with default_promotion():
        partition = optax.partition(
            {"averaged": METHODS[method](), "plain": optax.sgd(0.1)}, {"a": "averaged", "b": "plain"}
        )
        for tx in (partition, optax.masked(METHODS[method](), {"a": True, "b": False})):
            params, state = run(tx)
            averaged = zoo.eval_params(state, params)
            np.testing.assert_array_equal(averaged["b"], params["b"])
            np.testing.assert_allclose(averaged["a"], expected["a"], rtol=1e-5)


def test_two_averages_in_a_partition_each_fill_their_leaves() -> None:
    with default_promotion():
        tx = optax.partition(
            {"fast": METHODS["with_ema"](), "slow": METHODS["schedule_free_sgd"]()}, {"a": "fast", "b": "slow"}
        )
        params, state = run(tx)
    averaged = zoo.eval_params(state, params)
    for leaf, method in (("a", "with_ema"), ("b", "schedule_free_sgd")):
        alone, alone_state = run(METHODS[method](), {leaf: PARAMS[leaf]})
        np.testing.assert_allclose(averaged[leaf], zoo.eval_params(alone_state, alone)[leaf], rtol=1e-5)


def test_of_nested_averages_the_outermost_decides() -> None:
    params, state = run(zoo.with_ema(zoo.schedule_free_sgd(0.1), 0.7))
    jax.tree.map(np.testing.assert_array_equal, zoo.eval_params(state, params), state.ema)


def test_without_an_average_the_parameters_are_returned() -> None:
    with default_promotion():
        params, state = run(optax.adam(0.1))
    assert zoo.eval_params(state, params) is params


@pytest.mark.parametrize("method", METHODS)
def test_before_the_first_step_the_parameters_are_returned(method: str) -> None:
    state = METHODS[method]().init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, zoo.eval_params(state, PARAMS), PARAMS)


def test_the_average_comes_in_the_parameters_dtypes() -> None:
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    for make in METHODS.values():
        trained, state = run(make(), params)
        assert [leaf.dtype for leaf in jax.tree.leaves(zoo.eval_params(state, trained))] == [jnp.bfloat16, jnp.float32]
