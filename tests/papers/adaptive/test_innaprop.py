"""INNAprop: the authors' recursion, the dynamics it discretises, and its damping without a Hessian."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory


def recursion(
    p: np.ndarray, gradients: np.ndarray, alpha: float, beta: float, weight_decay: float, b2: float = 0.99
) -> list[np.ndarray]:
    """As the authors wrote it, with 1 / (beta - learning_rate)."""
    psi, v, walked = (1 - alpha * beta) * p, np.zeros_like(p), []
    for t, g in enumerate(gradients, start=1):
        lr = RATES[t - 1]
        p = (1 - lr * weight_decay) * p
        v = b2 * v + (1 - b2) * g**2
        psi = (1 - lr / beta) * psi + lr * (1 / beta - alpha) * p
        p = (1 + lr * (1 - alpha * beta) / (beta - lr)) * p - lr / (beta - lr) * psi
        p = p - lr * beta * g / (np.sqrt(v) / np.sqrt(1 - b2**t) + 1e-8)
        walked.append(p)
    return walked


RATES = 0.1 / np.arange(1.0, 13.0)


def rates(count: Any) -> Any:
    return jnp.asarray(RATES)[count]


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.9), (1.0, 1.0), (2.0, 2.0), (0.0, 0.3)])
def test_equals_the_authors_recursion(alpha: float, beta: float) -> None:
    params, gradients = problem()
    tx = zoo.innaprop(rates, alpha, beta, b2=0.99, weight_decay=0.5, mask={"w": True, "b": False})
    with jax.enable_x64(True):
        ours, _ = trajectory(tx, params, gradients)
    for name, weight_decay in {"w": 0.5, "b": 0.0}.items():
        expected = recursion(params[name], gradients[name], alpha, beta, weight_decay)
        np.testing.assert_allclose(ours[name], expected, rtol=1e-11)


def test_alpha_beta_of_1_is_rmsprop() -> None:
    params, gradients = problem()
    tx = zoo.innaprop(0.01, alpha=2.0, beta=0.5, b2=0.9, weight_decay=0.0)
    with jax.enable_x64(True):
        ours, _ = trajectory(tx, params, gradients)
    v = np.zeros_like(params["w"])
    p = params["w"]
    for t, g in enumerate(gradients["w"], start=1):
        v = 0.9 * v + 0.1 * g**2
        p = p - 0.01 * 0.5 * g / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        np.testing.assert_allclose(ours["w"][t - 1], p, rtol=1e-12)
    state = tx.init(params)
    _, state = tx.update(jax.tree.map(lambda g: jnp.asarray(g[0], jnp.float32), gradients), state, params)
    assert not np.any(state.psi["w"])


def on_a_quadratic(learning_rate: float, alpha: float, beta: float, duration: float, curvature: float) -> np.ndarray:
    """p / p0 after each step on curvature / 2 p^2, with RMSprop's scaling switched off.

    Gradients are tiny against eps = 1, so that g / (sqrt(v) + eps) is g.
    """
    tx = zoo.innaprop(learning_rate, alpha, beta, eps=1.0, weight_decay=0.0)
    start = jnp.array([1e-9])

    def step(carry: Any, _: None) -> Any:
        p, state = carry
        updates, state = tx.update(curvature * p, state, p)
        return (p + updates, state), p + updates

    _, walked = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=round(duration / learning_rate)))()
    return np.asarray(walked)[:, 0] / 1e-9


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.9), (0.5, 0.1), (2.0, 2.0)])
def test_follows_the_inertial_newton_dynamics(alpha: float, beta: float) -> None:
    """x'' + (alpha + beta c) x' + c x = 0 from x = 1; the distance to its solution is proportional to the step.

    The velocity at the start is that of x' = (1 / beta - alpha) x - psi / beta - beta c x.
    """
    curvature, duration = 4.0, 3.0
    roots = np.roots([1.0, alpha + beta * curvature, curvature]).astype(complex)
    weights = np.linalg.solve([[1, 1], roots], [1.0, -beta * curvature])
    exact = (weights * np.exp(roots * duration)).sum().real
    with jax.enable_x64(True):
        errors = [
            abs(on_a_quadratic(step, alpha, beta, duration, curvature)[-1] - exact) for step in (4e-3, 2e-3, 1e-3)
        ]
    assert errors[-1] < 0.02
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2.0, rtol=0.15)


def test_newton_damping_removes_oscillations() -> None:
    """beta damps every direction by its own curvature."""

    def swings(alpha: float, beta: float, curvature: float) -> int:
        walked = on_a_quadratic(1e-2, alpha, beta, 30.0, curvature)
        return int(np.count_nonzero(np.diff(np.sign(walked))))

    with jax.enable_x64(True):
        for curvature in (9.0, 25.0):
            assert swings(0.1, 0.02, curvature) > 10
            assert swings(0.1, 0.9, curvature) <= 1


def test_without_gradient_and_decay_parameters_rest() -> None:
    params = {"w": jnp.linspace(-300.0, 300.0, 7)}
    zero = {"w": np.zeros((500, 7), np.float32)}
    ours, _ = trajectory(zoo.innaprop(0.01, weight_decay=0.0), params, zero)
    np.testing.assert_allclose(ours["w"][-1], params["w"], rtol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"beta": 0.0}, r"beta must be in \(0, inf\), got 0.0"),
        ({"beta": -1.0}, r"beta must be in \(0, inf\), got -1.0"),
        ({"alpha": -0.1}, r"alpha must be in \[0, inf\), got -0.1"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.9}, "learning_rate must not equal beta, got 0.9 for both"),
    ],
)
def test_bad_numbers(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^innaprop: {sentence}"):
        zoo.innaprop(**arguments)


def test_params_are_needed() -> None:
    params = jnp.ones(3)
    tx = zoo.innaprop()
    with pytest.raises(ValueError, match=r"^innaprop: needs params"):
        tx.update(params, tx.init(params))
