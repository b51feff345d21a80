"""NAG-GS: the authors' semi-implicit recursion, constant gamma, the skipped step, and stability of large steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

RATES = 0.2 / np.arange(1.0, 13.0)


def rates(count: Any) -> Any:
    return jnp.asarray(RATES)[count]


CURVATURES = np.array([0.5, 2.0, 10.0])


def on_a_quadratic(tx: optax.GradientTransformation, steps: int) -> np.ndarray:
    """The parameters after each step on sum of CURVATURES / 2 x^2."""

    def step(carry: Any, _: None) -> Any:
        p, state = carry
        updates, state = tx.update(CURVATURES * p, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    start = jnp.array([1.0, -2.0, 3.0])
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=steps)[1])())


def test_equals_algorithm_1() -> None:
    """x before v, with the gradient at the new x and the new gamma; our step t + 1 ends with its x of step t + 1."""
    mu, gamma = 0.7, 1.5
    with jax.enable_x64(True):
        ours = on_a_quadratic(zoo.nag_gs(0.1, mu, gamma), steps=20)
    x = v = np.array([1.0, -2.0, 3.0])
    for k in range(20):
        x = (x + 0.1 * v) / 1.1
        np.testing.assert_allclose(ours[k], x, rtol=1e-12)
        gamma = (gamma + 0.1 * mu) / 1.1
        v = (gamma * v + 0.1 * mu * x - 0.1 * CURVATURES * x) / (gamma + 0.1 * mu)


@pytest.mark.parametrize("update_gamma", [True, False])
@pytest.mark.parametrize("skip_first", [True, False])
def test_equations_with_every_flag(skip_first: bool, update_gamma: bool) -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.nag_gs(rates, 0.5, 2.0, skip_first, update_gamma), params, gradients)
    for name, p in params.items():
        v, gamma = p, 2.0
        for t, g in enumerate(gradients[name]):
            a = RATES[t]
            if not (skip_first and update_gamma and t == 0):
                v = (gamma * v + a * 0.5 * p - a * g) / (gamma + a * 0.5)
            if update_gamma:
                gamma = (gamma + a * 0.5) / (1 + a)
            p = (p + a * v) / (1 + a)
            np.testing.assert_allclose(ours[name][t], p, rtol=1e-12)


def test_gamma_approaches_mu() -> None:
    params = jnp.ones(2)
    tx = zoo.nag_gs(0.5, mu=0.3, gamma=4.0)
    state = tx.init(params)
    gammas = []
    for _ in range(60):
        _, state = tx.update(jnp.zeros(2), state, params)
        gammas.append(float(state.gamma))
    assert np.all(np.diff(gammas) <= 0) and gammas[0] < 4.0
    np.testing.assert_allclose(gammas[-1], 0.3, rtol=1e-5)


def test_without_gradient_parameters_rest() -> None:
    params, gradients = problem()
    ours, _ = trajectory(zoo.nag_gs(), params, jax.tree.map(np.zeros_like, gradients))
    np.testing.assert_array_equal(ours["w"][-1], params["w"].astype(np.float32))


def test_the_first_gradient_is_thrown_away() -> None:
    params, gradients = problem()
    spoiled = {name: np.concatenate([np.full_like(g[:1], np.nan), g[1:]]) for name, g in gradients.items()}
    ours, _ = trajectory(zoo.nag_gs(), params, gradients)
    other, _ = trajectory(zoo.nag_gs(), params, spoiled)
    np.testing.assert_array_equal(ours["w"][0], params["w"].astype(np.float32))
    np.testing.assert_array_equal(ours["w"], other["w"])


def test_gamma_may_follow_a_schedule_of_its_own() -> None:
    params, gradients = problem(steps=3)
    scheduled = zoo.nag_gs(0.1, gamma=lambda count: 1.0 + jnp.asarray(count, float), update_gamma=False)
    with jax.enable_x64(True):
        ours, _ = trajectory(scheduled, params, gradients)
    p = v = params["w"]
    for t, g in enumerate(gradients["w"]):
        v = ((1.0 + t) * v + 0.1 * p - 0.1 * g) / (1.0 + t + 0.1)
        p = (p + 0.1 * v) / 1.1
        np.testing.assert_allclose(ours["w"][t], p, rtol=1e-12)


def test_is_stable_at_rates_where_explicit_steps_diverge() -> None:
    """On curvature L = 10 and mu = 0.5, steps of the flow of 0.5 = 5 / L; gradient descent needs less than 2 / L."""
    with jax.enable_x64(True):
        ours = on_a_quadratic(zoo.nag_gs(0.5, mu=0.5, gamma=0.5), steps=100)
        explicit = on_a_quadratic(optax.sgd(0.5), steps=100)
    assert np.abs(ours[-1]).max() < 1e-3
    assert np.abs(explicit[-1]).max() > 1e6


def test_is_accelerated() -> None:
    """At mu / L = 1 / 20 a good rate of NAG-GS beats the best of gradient descent, after 40 steps each."""
    with jax.enable_x64(True):
        ours = min(np.abs(on_a_quadratic(zoo.nag_gs(a, mu=0.5, gamma=0.5), 40)[-1]).max() for a in (0.3, 0.5))
    contractions = 1 - np.linspace(0.02, 0.2, 100)[:, None] * CURVATURES
    descent = np.abs(contractions**40 * [1.0, -2.0, 3.0]).max(axis=1).min()
    assert ours < 0.5 * descent


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mu": -1.0}, r"mu must be in \[0, inf\), got -1.0"),
        ({"gamma": 0.0}, r"gamma must be in \(0, inf\), got 0.0"),
        ({"learning_rate": float("nan")}, r"learning_rate must be in \[0, inf\), got nan"),
    ],
)
def test_bad_numbers(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^nag_gs: {sentence}"):
        zoo.nag_gs(**arguments)


def test_params_are_needed() -> None:
    params = jnp.ones(3)
    tx = zoo.nag_gs()
    with pytest.raises(ValueError, match=r"^nag_gs: needs params"):
        tx.update(params, tx.init(params))
