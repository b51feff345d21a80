"""Stochastic models: every closed form against the minimiser of its model, and what a long step does to it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

MODELS = ["linear", "truncated", "prox_linear_abs", "prox_linear_hinge", "prox_point_least_squares"]


def stepped(tx: optax.GradientTransformation, x: Any, g: Any, value: Any) -> Any:
    x, g = jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32)
    updates, _ = optax.with_extra_args_support(tx).update(g, tx.init(x), x, value=jnp.float32(value))
    return np.asarray(x + updates)


MINIMISED: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "linear": lambda m, f_min: m,
    "truncated": lambda m, f_min: np.maximum(m, f_min),
    "prox_linear_abs": lambda m, f_min: np.abs(m),
    "prox_linear_hinge": lambda m, f_min: np.maximum(m, 0),
}


@pytest.mark.parametrize("model", MINIMISED)
@pytest.mark.parametrize("value", [1.3, 0.2, -0.6])
@pytest.mark.parametrize("rate", [0.1, 2.0])
def test_the_step_minimises_the_model(model: Any, value: float, rate: float) -> None:
    slope, f_min = 1.5, -0.4
    at = np.linspace(-6, 6, 240_001)
    objective = MINIMISED[model](value + slope * at, f_min) + at**2 / (2 * rate)
    reached = stepped(zoo.stochastic_model(rate, model, f_min), 0.0, slope, value)
    np.testing.assert_allclose(reached, at[np.argmin(objective)], atol=1e-4)


def test_the_proximal_point_of_least_squares() -> None:
    a, b, x, rate = np.array([1.0, -2.0]), 0.7, np.array([0.3, 0.4]), 0.8
    residual = a @ x - b
    reached = stepped(zoo.stochastic_model(rate, "prox_point_least_squares"), x, residual * a, 0.5 * residual**2)
    np.testing.assert_allclose(reached, x - rate * a * residual / (1 + rate * a @ a), rtol=1e-5)
    optimality = a * (a @ reached - b) + (reached - x) / rate
    np.testing.assert_allclose(optimality, 0, atol=1e-6)


def test_truncated_jumps_to_the_zero() -> None:
    a, b, x = 3.0, 2.0, -1.0
    reached = stepped(zoo.stochastic_model(1e30), x, a * np.sign(a * x - b), abs(a * x - b))
    np.testing.assert_allclose(reached, b / a, rtol=1e-6)


def test_truncated_is_polyak_sgd() -> None:
    params, gradients = problem()
    values = np.linspace(2.0, 0.2, 12)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.stochastic_model(0.05, f_min=0.3), params, gradients, value=values)
        polyak = optax.polyak_sgd(max_learning_rate=0.05, f_min=0.3, variant="sps+")
        with jax.numpy_dtype_promotion("standard"):
            theirs, _ = trajectory(polyak, params, gradients, value=values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, theirs)


def test_linear_is_sgd_and_needs_no_value() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.stochastic_model(0.1, "linear"), params, gradients)
        theirs = optax_trajectory(optax.sgd(0.1), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


def test_models_survive_rates_at_which_the_gradient_step_does_not() -> None:
    """The papers' claim: with a better model the choice of the rate hardly matters."""
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(200, 4)), jnp.float32)
    solution = jnp.array([1.0, -1.0, 0.5, 2.0])

    def distance(model: Any, rate: float) -> float:
        tx = zoo.stochastic_model(rate, model)

        def step(x: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
            residual = row @ (x - solution)
            updates, _ = tx.update(residual * row, tx.init(x), x, value=0.5 * residual**2)
            return x + updates, None

        return float(jnp.linalg.norm(jax.jit(lambda: jax.lax.scan(step, jnp.zeros(4), rows)[0])() - solution))

    for rate in (1.0, 1e3):
        assert not distance("linear", rate) < 1e3
        assert distance("truncated", rate) < 1e-3
        assert distance("prox_point_least_squares", rate) < 1e-3


@pytest.mark.parametrize("model", MODELS[1:])
@pytest.mark.parametrize("broken", [{"value": jnp.nan}, {"value": jnp.inf}, {"gradient": jnp.nan}])
def test_no_step_without_a_finite_value(model: Any, broken: dict[str, float]) -> None:
    tx = zoo.stochastic_model(0.1, model)
    params = {"w": jnp.ones(3)}
    grads = {"w": jnp.array([1.0, broken.get("gradient", 2.0), 3.0])}
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params, value=jnp.float32(broken.get("value", 1.0)))
    np.testing.assert_array_equal(updates["w"], 0.0)
    assert int(state.count) == 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_step_without_a_slope(model: Any, value: float) -> None:
    np.testing.assert_array_equal(stepped(zoo.stochastic_model(0.1, model), np.ones(3), np.zeros(3), value), 1.0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"stochastic_model: model must be one of .* did you mean 'truncated'"):
        zoo.stochastic_model(0.1, "truncate")
    with pytest.raises(ValueError, match=r"stochastic_model: learning_rate must be in \[0, inf\), got -1"):
        zoo.stochastic_model(-1)
    tx = zoo.stochastic_model(0.1)
    with pytest.raises(ValueError, match="stochastic_model: needs value"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
