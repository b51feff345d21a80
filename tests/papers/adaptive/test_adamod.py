"""AdaMod: its limit, the bounds on the step sizes, what the learning rate does to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def test_without_memory_of_step_sizes_it_is_adamw() -> None:
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adamod(0.01, b3=0.0, eps=0.0, weight_decay=0.1), *problem())
        theirs = optax_trajectory(optax.adamw(0.01, eps=0.0, weight_decay=0.1), *problem())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), ours, theirs)


def test_each_step_size_is_the_smaller_of_adams_and_their_average() -> None:
    params, gradients = problem(steps=40)
    b1, b2, b3, eps, lr = 0.9, 0.99, 0.9, 1e-3, 0.01
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adamod(lr, b1, b2, b3, eps), params, gradients)
    for name, p in params.items():
        m, v, s, bounded = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), 0
        for t, g in enumerate(gradients[name], start=1):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            eta = lr * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(v) + eps)
            s = b3 * s + (1 - b3) * eta
            p = p - np.minimum(eta, s) * m
            bounded += np.sum(s < eta)
            np.testing.assert_allclose(ours[name][t - 1], p, rtol=1e-11)
        assert 0 < bounded < gradients[name].size


def test_the_first_step_is_a_small_part_of_adams() -> None:
    params, gradients = problem(steps=1)
    adam, _ = trajectory(zoo.adamod(0.1, b3=0.0), params, gradients)
    ours, _ = trajectory(zoo.adamod(0.1, b3=0.99), params, gradients)
    np.testing.assert_allclose(ours["w"][0] - params["w"], 0.01 * (adam["w"][0] - params["w"]), rtol=2e-3)


def test_the_extremely_large_step_sizes_of_adam_are_gone() -> None:
    """At the first step, and where gradients fade after a while."""
    noise = jax.random.normal(jax.random.key(0), (100,))
    gradients = noise * jnp.where(jnp.arange(100) < 60, 1.0, 1e-4)

    def sizes(b3: float) -> np.ndarray:
        tx = zoo.scale_by_adamod(b2=0.9, b3=b3)

        def step(state: object, g: jax.Array) -> tuple[object, jax.Array]:
            u, state = tx.update(g, state)
            return state, u / state.m

        return np.asarray(jax.lax.scan(step, tx.init(jnp.zeros(())), gradients)[1])

    adams, ours = sizes(0.0), sizes(0.99)
    typical = np.median(adams[20:60])
    assert adams[0] > 5 * typical
    assert adams[-1] > 8 * typical
    assert ours.max() < 2 * typical


def test_with_a_constant_rate_the_direction_is_the_method() -> None:
    alias, _ = trajectory(zoo.adamod(0.01), *problem())
    chained, _ = trajectory(optax.chain(zoo.scale_by_adamod(), optax.scale(-0.01)), *problem())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), alias, chained)


def test_after_a_drop_of_the_rate_the_average_remembers_the_old_one() -> None:
    params, gradients = problem(steps=40)
    tx = zoo.adamod(lambda count: jnp.where(count < 30, 0.1, 0.001), b3=0.9)
    state = tx.init(params)
    for i in range(40):
        g = jax.tree.map(lambda g, i=i: jnp.asarray(g[i], jnp.float32), gradients)
        updates, state = tx.update(g, state)
        if i == 30:
            size = np.abs(np.asarray(updates["w"] / state.m["w"]))
            assert np.all(size < 0.1 * np.asarray(state.s["w"]))


def test_decay_is_multiplied_by_the_rate() -> None:
    params, gradients = problem(steps=1)
    zero = jax.tree.map(np.zeros_like, gradients)
    ours, _ = trajectory(zoo.adamod(0.1, weight_decay=0.5, mask={"w": True, "b": False}), params, zero)
    np.testing.assert_allclose(ours["w"][0], params["w"] * 0.95, rtol=1e-6)
    np.testing.assert_allclose(ours["b"][0], params["b"], rtol=1e-7)


def test_a_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^adamod: b3 must be in \[0, 1\), got 2.0$"):
        zoo.adamod(0.1, b3=2.0)
