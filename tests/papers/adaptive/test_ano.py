"""Ano and Anolog: their recursions, their schedules of the momentum, and noise."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

LENGTHENING = {
    "log": lambda t: 1 - 1 / math.log(max(2, t)),
    "sqrt": lambda t: 1 - 1 / math.sqrt(t),
    "inverse": lambda t: 1 - 1 / t,
}


def directions(
    gradients: np.ndarray, decay: Callable[[int], float], b2: float, eps: float, unbiased: bool
) -> np.ndarray:
    m, v, us = np.zeros_like(gradients[0]), np.zeros_like(gradients[0]), []
    for t, g in enumerate(gradients, start=1):
        m = decay(t) * m + (1 - decay(t)) * g
        v = b2 * v + (1 - b2) * np.sign(g * g - v) * g * g
        us.append(np.abs(g) * np.sign(m) / np.sqrt(v / (1 - b2**t if unbiased else 1) + eps))
    return np.stack(us)


def updates(tx: optax.GradientTransformation, gradients: np.ndarray) -> np.ndarray:
    def step(state: Any, g: jax.Array) -> tuple[Any, jax.Array]:
        u, state = tx.update(g, state)
        return state, u

    return np.asarray(jax.lax.scan(step, tx.init(jnp.zeros(gradients[0].shape)), jnp.asarray(gradients))[1])


def test_ano_follows_its_recursion() -> None:
    gradients = problem(steps=60)[1]["w"]
    with jax.enable_x64(True):
        ours = updates(zoo.scale_by_ano(0.8, 0.9, 1e-3), gradients)
    np.testing.assert_allclose(ours, directions(gradients, lambda t: 0.8, 0.9, 1e-3, unbiased=True), rtol=1e-11)


@pytest.mark.parametrize("schedule", LENGTHENING)
def test_anolog_follows_its_recursion(schedule: str) -> None:
    gradients = problem(steps=60)[1]["w"]
    with jax.enable_x64(True):
        ours = updates(zoo.scale_by_anolog(0.9, 1e-3, schedule=schedule), gradients)
    expected = directions(gradients, LENGTHENING[schedule], 0.9, 1e-3, unbiased=False)
    np.testing.assert_allclose(ours, expected, rtol=1e-11)


def test_the_inverse_schedule_takes_the_sign_of_the_mean_gradient() -> None:
    gradients = problem(steps=30)[1]["w"]
    means = np.cumsum(gradients, axis=0)
    np.testing.assert_array_equal(
        np.sign(updates(zoo.scale_by_anolog(schedule="inverse"), gradients.astype(np.float32))), np.sign(means)
    )


def test_the_first_step_is_the_sign() -> None:
    params, gradients = problem(steps=1)
    ours, _ = trajectory(zoo.ano(1.0), params, gradients)
    jax.tree.map(
        lambda a, p, g: np.testing.assert_allclose(a[0] - p, -np.sign(g[0]), rtol=1e-4), ours, params, gradients
    )


def test_gradients_of_constant_sign_keep_their_own_size() -> None:
    gradients = np.abs(problem(steps=30)[1]["w"]) * np.array([1.0, -1.0, 1.0])
    with jax.enable_x64(True):
        tx = zoo.scale_by_ano(eps=0.0)
        ours = updates(tx, gradients)
        v = directions(gradients, lambda t: 0.0, 0.99, 0.0, unbiased=True)
    np.testing.assert_allclose(ours, v, rtol=1e-11)


def test_the_second_moment_is_never_negative() -> None:
    gradients = np.geomspace(1.0, 1e-6, 50)[:, None] * np.array([1.0, 3.0])
    assert np.all(np.isfinite(updates(zoo.scale_by_ano(b2=0.5, eps=1e-30), gradients.astype(np.float32))))


def test_follows_a_moving_target_through_noise_better_than_adam() -> None:
    """Each with the best rate of a grid; the target jumps from side to side every hundred steps."""
    rates, seeds = jnp.geomspace(0.1, 3.0, 6), jnp.arange(2)

    def mean_loss(make: Callable[..., Any], rate: jax.Array, seed: jax.Array) -> jax.Array:
        tx = make(rate)

        def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            p, state = carry
            target = jnp.where(i % 200 < 100, 3.0, -3.0)
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), p.shape)
            u, state = tx.update(p - target + noise, state, p)
            return (p + u, state), jnp.mean((p - target) ** 2)

        p = jnp.zeros(32)
        return jnp.mean(jax.lax.scan(step, (p, tx.init(p)), jnp.arange(600))[1])

    def best(make: Callable[..., Any]) -> float:
        over_seeds = jax.vmap(lambda rate: jnp.mean(jax.vmap(lambda seed: mean_loss(make, rate, seed))(seeds)))
        return float(jnp.min(jax.jit(over_seeds)(rates)))

    with jax.numpy_dtype_promotion("standard"):
        adams = best(optax.adam)
    assert best(zoo.ano) < 0.7 * adams
    assert best(zoo.anolog) < 0.6 * adams


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^anolog: schedule must be one of 'log', 'sqrt', 'inverse', got 'sqr'"):
        zoo.anolog(0.1, schedule="sqr")
    with pytest.raises(ValueError, match=r"^ano: b2 must be in \[0.5, 1\), got 0.4$"):
        zoo.ano(0.1, b2=0.4)
