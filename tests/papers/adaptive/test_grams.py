"""Grams, and its direction for any other method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def assert_same(ours: object, theirs: object, rtol: float = 1e-11) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), ours, theirs)


def test_gradients_of_constant_sign_give_adam() -> None:
    params, gradients = problem()
    one_way = jax.tree.map(np.abs, gradients)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.grams(0.01, eps=0.0), params, one_way)
        adam = optax_trajectory(optax.adam(0.01, eps=0.0), params, one_way)
        turning, _ = trajectory(zoo.grams(0.01, eps=0.0), params, gradients)
        adam_turning = optax_trajectory(optax.adam(0.01, eps=0.0), params, gradients)
    assert_same(ours, adam)
    assert np.abs(turning["w"] - adam_turning["w"]).max() > 1e-3


def test_without_bias_correction_the_moments_are_plain() -> None:
    params, gradients = problem(steps=8)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.grams(0.1, 0.8, 0.9, 1e-3, bias_correction=False), params, gradients)
    for name, p in params.items():
        m, v = np.zeros_like(p), np.zeros_like(p)
        for t, g in enumerate(gradients[name]):
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            p = p - 0.1 * np.sign(g) * np.abs(m) / (np.sqrt(v) + 1e-3)
            np.testing.assert_allclose(ours[name][t], p, rtol=1e-11)


def test_the_wrapper_around_adam_is_grams() -> None:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        direct, _ = trajectory(zoo.grams(0.01, eps=0.0), *problem())
        ascent = optax.chain(zoo.grams_direction(optax.scale_by_adam(eps=0.0)), optax.scale(-0.01))
        descent = zoo.grams_direction(optax.adam(0.01, eps=0.0), direction="descent")
        wrapped = [trajectory(tx, *problem())[0] for tx in (ascent, descent)]
    assert_same(wrapped[0], direct)
    assert_same(wrapped[1], direct)


def test_an_entry_without_gradient_does_not_move() -> None:
    params, gradients = problem()
    gradients["w"][5:, 0] = 0.0
    ours, _ = trajectory(zoo.grams(0.1), params, gradients)
    moved = np.diff(ours["w"], axis=0)[4:]
    assert np.all(moved[:, 0] == 0)
    assert np.all(moved[:, 1:] != 0)


def test_no_entry_moves_uphill_and_none_changes_its_size() -> None:
    params, gradients = problem(steps=30)
    plain = optax.sgd(0.1, momentum=0.9)
    steered = zoo.grams_direction(plain, direction="descent")
    states, uphill = [plain.init(params), steered.init(params)], 0
    for i in range(30):
        g = jax.tree.map(lambda g, i=i: jnp.asarray(g[i], jnp.float32), gradients)
        with jax.numpy_dtype_promotion("standard"):
            theirs, states[0] = plain.update(g, states[0])
            ours, states[1] = steered.update(g, states[1])
        assert np.all(ours["w"] * g["w"] <= 0)
        np.testing.assert_allclose(np.abs(ours["w"]), np.abs(theirs["w"]), rtol=1e-6)
        uphill += int(np.sum(theirs["w"] * g["w"] > 0))
    assert uphill > 20


def test_extra_arguments_reach_the_inner_method() -> None:
    params = {"w": jnp.ones(3)}
    tx = zoo.grams_direction(optax.polyak_sgd(1.0), direction="descent")
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(params, tx.init(params), params, value=jnp.float32(1.5))
    np.testing.assert_allclose(updates["w"], -0.5, rtol=1e-6)


def test_what_is_no_direction_or_no_transformation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^grams_direction: direction must be one of 'ascent', 'descent', got 'down'"):
        zoo.grams_direction(optax.sgd(0.1), direction="down")
    with pytest.raises(TypeError, match=r"^grams_direction: inner must be an optax.GradientTransformation, got 0.1$"):
        zoo.grams_direction(0.1)
    with pytest.raises(ValueError, match=r"^grams: b1 must be in \[0, 1\), got 1$"):
        zoo.grams(0.1, b1=1)
