"""MARS: what its correction does to the noise of the average, in its exact and in its approximate form."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import optax_zoo as zoo


def averages(gradients: np.ndarray, before: np.ndarray | None, b1: float, gamma: float) -> np.ndarray:
    """m after every step, unclipped."""
    tx = zoo.scale_by_mars(b1, gamma=gamma, variant="lion", clip_norm=math.inf)

    def step(state: Any, given: Any) -> tuple[Any, Array]:
        g, extra = given
        _, state = tx.update(g, state, **extra)
        return state, state.m

    extra = {} if before is None else {"previous_grads": before}
    run = jax.jit(lambda given: jax.lax.scan(step, tx.init(given[0][0]), given)[1])
    return np.asarray(run((gradients, extra)))


def test_exact_with_gamma_1_is_storm() -> None:
    with jax.enable_x64(True):
        g, before = np.random.default_rng(0).normal(size=(2, 20, 3))
        ours, m = averages(g, before, 0.9, 1.0), np.zeros(3)
        for t in range(20):
            m = g[t] + 0.9 * (m - before[t])
            np.testing.assert_allclose(ours[t], m, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.025, 0.5, 1.0])
def test_the_approximate_form_is_momentum_that_favours_the_present_gradient(gamma: float) -> None:
    """m = m_raw + gamma b1 (g - the last m_raw), as Nesterov's; gamma = 1 leaves the gradient alone."""
    with jax.enable_x64(True):
        g = np.random.default_rng(0).normal(size=(20, 3))
        raw = averages(g, None, 0.9, 0.0)
        last = np.concatenate([np.zeros((1, 3)), raw[:-1]])
        ours = averages(g, None, 0.9, gamma)
        np.testing.assert_allclose(ours, raw + gamma * 0.9 * (g - last), rtol=1e-9, atol=1e-12)
        if gamma == 1.0:
            np.testing.assert_allclose(ours, g, rtol=1e-9)


@pytest.fixture(scope="module")
def walk() -> dict[str, np.ndarray]:
    """Softmax regression on parameters that move slowly: gradients of batches of 4, and of all rows, at every point."""
    rng, rows, steps, speed = np.random.default_rng(0), 256, 500, 0.02
    x, noise, start = (rng.normal(size=shape).astype(np.float32) for shape in [(rows, 8), (rows, 3), (8, 3)])
    labels = np.argmax(x[:, :3] + noise, axis=1)

    def gradient(t: Array, rows: Array, labels: Array) -> Array:
        def loss(w: Array) -> Array:
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(rows @ w), labels[:, None], 1))

        return jax.grad(loss)(jnp.cos(speed * t) * start + jnp.sin(speed * t) * start[::-1])

    chosen = rng.integers(rows, size=(steps, 4))
    times = np.arange(steps, dtype=np.float32)
    over_batches = jax.jit(jax.vmap(gradient))
    g, before = (over_batches(t, x[chosen], labels[chosen]) for t in (times, times - 1))
    full = jax.jit(jax.vmap(gradient, (0, None, None)))(times, x, labels)
    return {"g": np.asarray(g), "before": np.asarray(before), "full": np.asarray(full)}


@pytest.fixture(scope="module")
def error(walk: dict[str, np.ndarray]) -> Callable[..., float]:
    """Mean squared distance of m to the full gradient, after the start."""

    def of(gamma: float, exact: bool) -> float:
        m = averages(walk["g"], walk["before"] if exact else None, 0.98, gamma)
        return float(np.mean(np.sum((m - walk["full"])[200:] ** 2, axis=(1, 2))))

    return of


def test_exact_differences_reduce_the_error_of_the_average(
    walk: dict[str, np.ndarray], error: Callable[..., float]
) -> None:
    """At equal momentum: an average that is long enough to cancel noise lags behind without them."""
    single = float(np.mean(np.sum((walk["g"] - walk["full"])[200:] ** 2, axis=(1, 2))))
    raw, weak, half, full = (error(gamma, True) for gamma in (0.0, 0.025, 0.5, 1.0))
    assert full < 0.3 * raw and full < 0.03 * single
    assert full < half < 0.5 * raw
    assert half < weak < raw


def test_differences_between_batches_do_not(error: Callable[..., float]) -> None:
    """The approximate form adds the noise of the present batch: at the authors' gamma hardly any, at 0.5 a lot."""
    raw, weak, half = (error(gamma, False) for gamma in (0.0, 0.025, 0.5))
    assert 0.9 * raw < weak < 1.1 * raw
    assert half > 2 * raw


def test_the_correction_does_not_move_the_mean(walk: dict[str, np.ndarray]) -> None:
    """Over all batches, the exact c is the full gradient plus the full difference: the noise has mean 0."""
    pull = 0.5 * 0.98 / 0.02
    correction = pull * (walk["g"] - walk["before"])
    full = pull * np.diff(walk["full"], axis=0)
    bias = np.mean(correction[1:] - full, axis=0)
    spread = np.std(correction[1:] - full, axis=0) / math.sqrt(len(full))
    assert np.all(np.abs(bias) < 4 * spread)
