"""Averages of a constant-rate run: its windows, how many of them are best, and that they stand in for a cooldown."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

HOST_MEMORY = jax.device_put(jnp.zeros(()), jax.memory.Space.Host).sharding.memory_kind == "pinned_host"


def walk(steps: int = 40, **settings: Any) -> tuple[Any, Any]:
    """Parameters and averages after each step, in float64."""
    params, gradients = problem(steps)
    with jax.enable_x64(True):
        return trajectory(zoo.with_swa_windows(optax.sgd(0.1), **settings), params, gradients)


@pytest.mark.parametrize("host", [False, True][: 1 + HOST_MEMORY])
@pytest.mark.parametrize(("horizon", "interval", "windows"), [(6, 2, 3), (4, 1, 1), (5, 5, 2), (50, 10, 2)])
def test_the_mean_of_the_last_windows(horizon: int, interval: int, windows: int, host: bool) -> None:
    trained, averaged = walk(horizon=horizon, interval=interval, windows=windows, host=host)
    for name, points in trained.items():
        means = [points[i : i + horizon : interval].mean(axis=0) for i in range(0, 41 - horizon, horizon)]
        for t in range(1, 41):
            kept = means[: t // horizon][-windows:]
            expected = np.mean(kept, axis=0) if kept else points[t - 1]
            np.testing.assert_allclose(averaged[name][t - 1], expected, rtol=1e-12, atol=1e-15)


def run(tx: Any, steps: int, params: Any, noise: float = 1.0) -> tuple[Any, Any]:
    """Parameters and state after `steps` noisy gradients of a badly conditioned quadratic around 1."""
    curvature = jnp.geomspace(0.02, 1.0, params.size)

    def step(carry: Any, e: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(curvature * (params - 1.0) + noise * e, state, params)
        return (optax.apply_updates(params, updates), state), None

    draws = jax.random.normal(jax.random.key(0), (steps, params.size))
    return jax.lax.scan(step, (params, tx.init(params)), draws)[0]


def loss(params: Any) -> float:
    return float(jnp.geomspace(0.02, 1.0, params.size) @ (params - 1.0) ** 2)


def test_the_best_number_of_windows() -> None:
    tx = optax.chain(optax.identity(), zoo.with_swa_windows(optax.sgd(0.5), 10, 5, 8))
    params, state = run(tx, 75, jnp.full(20, 5.0))
    candidates = []

    def score(tree: Any) -> float:
        candidates.append(tree)
        return -loss(tree)

    best, chosen = zoo.best_windows(state, params, score)
    assert len(candidates) == 7 and chosen == 1 + int(np.argmin([loss(tree) for tree in candidates]))
    assert 1 < chosen < 7
    np.testing.assert_array_equal(best, candidates[chosen - 1])
    np.testing.assert_array_equal(candidates[-1], zoo.eval_params(state, params))
    assert loss(best) < loss(params)


def test_of_equal_scores_the_fewest_windows() -> None:
    params, state = run(zoo.with_swa_windows(optax.sgd(0.5), 10, 5, 4), 40, jnp.zeros(3))
    assert zoo.best_windows(state, params, lambda tree: 1.0)[1] == 1
    assert zoo.best_windows(state, params, lambda tree: -np.inf)[1] == 1


def test_windows_of_a_partition_fill_their_leaves() -> None:
    def windows() -> Any:
        return zoo.with_swa_windows(optax.sgd(0.5), 2, 1, 3)

    params = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)}
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.partition(
            {"w": windows(), "v": windows(), "plain": optax.sgd(0.5)}, {"a": "w", "b": "v", "c": "plain"}
        )
        state = tx.init(params)
        for _ in range(6):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
    best, chosen = zoo.best_windows(state, params, lambda tree: float(tree["a"][0] + tree["b"][0]))
    halves = 0.5 ** np.arange(1, 7)
    assert chosen == 3
    for name, expected in (("a", halves.mean()), ("b", halves.mean()), ("c", halves[-1])):
        np.testing.assert_allclose(best[name], expected, rtol=1e-6)


def test_windows_stand_in_for_a_cooldown() -> None:
    """The mean of a constant-rate run is far below its last iterate, and below a run whose rate falls to 0."""
    steps, start = 1000, jnp.full(20, 5.0)
    last, state = run(zoo.with_swa_windows(optax.sgd(0.5), 100, 5, 8), steps, start)
    average, _ = zoo.best_windows(state, last, lambda tree: -loss(tree))

    def cooled(count: Any) -> Any:
        return 0.5 * jnp.clip((steps - count.astype(float)) / (0.2 * steps), 0.0, 1.0)

    cooldown, _ = run(optax.sgd(cooled), steps, start)
    assert loss(average) < 0.2 * loss(last)
    assert loss(average) < loss(cooldown)


def test_bfloat16_parameters_keep_float32_means() -> None:
    state = zoo.with_swa_windows(optax.sgd(0.1)).init({"w": jnp.ones(2, jnp.bfloat16)})
    assert {tree["w"].dtype for tree in (state.mean, *state.ring)} == {jnp.dtype("float32")}


def test_what_cannot_be_is_refused() -> None:
    inner = optax.sgd(0.1)
    for settings, sentence in (
        ({"horizon": 0}, r"horizon must be in \[1, inf\), got 0"),
        ({"interval": 0}, r"interval must be in \[1, inf\), got 0"),
        ({"windows": 0}, r"windows must be in \[1, inf\), got 0"),
        ({"horizon": 10, "interval": 3}, "interval must divide horizon, got 3 and 10"),
    ):
        with pytest.raises(ValueError, match=f"with_swa_windows: {sentence}"):
            zoo.with_swa_windows(inner, **settings)
    params, state = run(zoo.with_swa_windows(inner, 10, 5, 4), 9, jnp.zeros(3))
    with pytest.raises(ValueError, match="best_windows: no window is finished after 9 steps"):
        zoo.best_windows(state, params, loss)
    with pytest.raises(ValueError, match="best_windows: found no with_swa_windows in the optimizer state"):
        zoo.best_windows(inner.init(params), params, loss)
    params, state = run(zoo.with_swa_windows(inner, 10, 5, 4), 20, jnp.zeros(3))
    with pytest.raises(ValueError, match="best_windows: score_fn of the last 1 windows is NaN"):
        zoo.best_windows(state, params, lambda tree: np.nan)
