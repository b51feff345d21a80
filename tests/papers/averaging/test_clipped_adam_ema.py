"""Clipped Adam with the average of its weights: its sums, its clip, its random scale and what is evaluated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

START, GRADIENTS = problem(12)


def walk(*args: Any, gradients: Any = GRADIENTS, **settings: Any) -> tuple[Any, Any]:
    with jax.enable_x64(True):
        return trajectory(zoo.clipped_adam_ema(*args, **settings), START, gradients)


def steps(trained: Any) -> Any:
    return {name: np.diff(points, axis=0, prepend=START[name][None]) for name, points in trained.items()}


def expected(clip: float, b: float) -> Any:
    """The steps, from the sums themselves."""
    moves = {}
    for name, g in GRADIENTS.items():
        moves[name] = np.zeros_like(g)
        for t in range(len(g)):
            weights = b ** np.arange(t, -1, -1.0).reshape(-1, *[1] * (g.ndim - 1))
            n = np.sum(weights * g[: t + 1], axis=0)
            q = np.sum(weights**2 * g[: t + 1] ** 2, axis=0)
            moves[name][t] = -np.clip(clip * n / np.sqrt(q), -clip, clip)
    return moves


@pytest.mark.parametrize(("clip", "b"), [(0.1, 0.9), (0.02, 0.99), (0.1, 0.0)])
def test_the_clipped_steps(clip: float, b: float) -> None:
    trained, _ = walk(clip, b)
    jax.tree.map(
        lambda a, z: np.testing.assert_allclose(a, z, rtol=1e-9, atol=1e-12), steps(trained), expected(clip, b)
    )


def test_it_is_adam_without_bias_correction_and_eps_clipped_at_the_rate() -> None:
    """n and q are Adam's averages over 1 - b and 1 - b^2, so that its step is shorter by a constant factor."""
    clip, b = 0.1, 0.9
    ratio = np.sqrt(1 - b * b) / (1 - b)

    def without_correction(count: Any) -> Any:
        t = count.astype(float) + 1
        return clip * ratio * (1 - b**t) / jnp.sqrt(1 - b ** (2 * t))

    moves = {}
    with jax.enable_x64(True):
        for name, g in GRADIENTS.items():
            adam = optax.adam(without_correction, b, b * b, eps=0.0)
            unclipped = np.diff(optax_trajectory(adam, START[name], g), axis=0, prepend=START[name][None])
            moves[name] = np.clip(unclipped, -clip, clip)
    assert any(np.abs(move).max() == clip for move in moves.values())
    trained, _ = walk(clip, b)
    jax.tree.map(lambda a, z: np.testing.assert_allclose(a, z, rtol=1e-9, atol=1e-12), steps(trained), moves)


@pytest.mark.parametrize("ema_decay", [None, 0.5, 0.0])
def test_the_average_is_normalised(ema_decay: float | None) -> None:
    trained, averaged = walk(0.1, 0.8, ema_decay=ema_decay)
    decay = 0.8 if ema_decay is None else ema_decay
    for name, points in trained.items():
        for t in range(1, 13):
            weights = decay ** np.arange(t - 1, -1, -1.0)
            np.testing.assert_allclose(
                averaged[name][t - 1], np.average(points[:t], axis=0, weights=weights), rtol=1e-12
            )


def test_one_scale_for_the_whole_tree_from_the_exponential_distribution() -> None:
    rng = np.random.default_rng(0)
    gradients = {name: rng.normal(size=(2000, *p.shape)) for name, p in START.items()}
    plain, scaled = (steps(walk(0.1, 0.9, gradients=gradients, random_scaling=on, seed=3)[0]) for on in (False, True))
    scales = scaled["w"][:, 0, 0] / plain["w"][:, 0, 0]
    for name, moves in plain.items():
        np.testing.assert_allclose(
            scaled[name], moves * scales.reshape(-1, *[1] * (moves.ndim - 1)), rtol=1e-6, atol=1e-12
        )
    assert abs(scales.mean() - 1) < 0.07 and abs(scales.var() - 1) < 0.2
    np.testing.assert_allclose(np.mean(scales > 1), np.exp(-1), atol=0.03)
    assert abs(np.corrcoef(scales[1:], scales[:-1])[0, 1]) < 0.06


def test_the_seed_decides_the_scales() -> None:
    first, again, other = (walk(0.1, random_scaling=True, seed=seed)[0] for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(first["w"], other["w"])


def test_a_coordinate_without_gradient_stays() -> None:
    tx = zoo.clipped_adam_ema(0.1)
    params = {"w": jnp.asarray([1.0, 2.0, 3.0])}
    updates, state = jax.jit(tx.update)({"w": jnp.asarray([0.0, 1e-30, -1e15])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [0.0, -0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(zoo.eval_params(state, params)["w"], params["w"] + updates["w"], rtol=1e-6)


def test_complex_coordinates_are_clipped_in_magnitude() -> None:
    tx = zoo.clipped_adam_ema(0.1, 0.9)
    params = jnp.zeros(2, jnp.complex64)
    state = tx.init(params)
    for g in ([3 + 4j, 1j], [3 + 4j, -1.0]):
        updates, state = tx.update(jnp.asarray(g, jnp.complex64), state, params)
    n = np.asarray([1.9 * (3 + 4j), 0.9j - 1.0])
    q = np.asarray([25 * 1.81, 1.81])
    np.testing.assert_allclose(updates, -0.1 * n / np.maximum(np.sqrt(q), np.abs(n)), rtol=1e-5)


def test_the_average_is_nearer_to_stationary_than_the_last_point() -> None:
    """A nonconvex, nonsmooth loss under noise: |x| + sin(3x)/3 in each coordinate, least at 0."""
    noise = jax.random.normal(jax.random.key(0), (3000, 50))
    tx = zoo.clipped_adam_ema(0.02, 0.99, random_scaling=True, seed=0)

    def step(carry: Any, e: Any) -> tuple[Any, Any]:
        x, state = carry
        updates, state = tx.update(jnp.sign(x) + jnp.cos(3 * x) + 2 * e, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), (x, zoo.eval_params(state, x))

    start = jnp.full(50, 2.0)
    _, (last, averaged) = jax.lax.scan(step, (start, tx.init(start)), noise)

    def loss(x: Any) -> Any:
        return (jnp.abs(x) + jnp.sin(3 * x) / 3)[1000:].mean()

    assert loss(averaged) < 0.5 * loss(last)


def test_what_cannot_be_is_refused() -> None:
    for settings, sentence in (
        ({"clip": -1.0}, r"clip must be in \[0, inf\), got -1.0"),
        ({"clip": 0.1, "b": 1.0}, r"b must be in \[0, 1\), got 1.0"),
        ({"clip": 0.1, "ema_decay": 1.5}, r"ema_decay must be in \[0, 1\], got 1.5"),
        ({"clip": 0.1, "random_scaling": True}, "random_scaling=True needs seed"),
        ({"clip": 0.1, "seed": -1}, r"seed must be in \[0, 4294967295\], got -1"),
    ):
        with pytest.raises(ValueError, match=f"clipped_adam_ema: {sentence}"):
            zoo.clipped_adam_ema(**settings)
    tx = zoo.clipped_adam_ema(0.1)
    with pytest.raises(ValueError, match="clipped_adam_ema: needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
