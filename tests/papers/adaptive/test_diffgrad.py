"""diffGrad: half of Adam without change, and the friction in between."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def direction(tx: optax.GradientTransformation, gradients: list[np.ndarray]) -> np.ndarray:
    """The last update of a sequence of gradients of one leaf."""
    updates, state = np.zeros_like(gradients[0]), tx.init(jnp.zeros(gradients[0].shape))
    for g in gradients:
        updates, state = tx.update(jnp.asarray(g), state)
    return np.asarray(updates)


def test_a_constant_gradient_takes_half_of_adams_step() -> None:
    params, gradients = problem(steps=10)
    constant = jax.tree.map(lambda g: np.broadcast_to(g[0], g.shape), gradients)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.diffgrad(0.01, eps=0.0), params, constant)
        adam = optax_trajectory(optax.adam(0.01, eps=0.0), params, constant)
    for name in params:
        np.testing.assert_allclose(np.diff(ours[name], axis=0), 0.5 * np.diff(adam[name], axis=0), rtol=1e-9)


def test_the_first_gradient_is_compared_with_zero() -> None:
    with jax.enable_x64(True):
        g = np.array([-3.0, -0.1, 0.2, 40.0])
        np.testing.assert_allclose(
            direction(zoo.scale_by_diffgrad(eps=0.0), [g]), np.sign(g) / (1 + np.exp(-np.abs(g))), rtol=1e-12
        )


def test_the_less_a_gradient_changes_the_smaller_the_step() -> None:
    changes = np.array([0.0, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0])
    before = np.full_like(changes, 12.0)
    gradients = [before, before, before + changes]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours = direction(zoo.scale_by_diffgrad(eps=0.0), gradients)
        adam = direction(optax.scale_by_adam(eps=0.0), gradients)
    share = ours / adam
    np.testing.assert_allclose(share, 1 / (1 + np.exp(-changes)), rtol=1e-9)
    assert np.all(np.diff(share) > 0)
    assert share[0] == pytest.approx(0.5)
    assert share[-1] == pytest.approx(1.0)


def test_friction_depends_on_the_scale_of_the_loss() -> None:
    params, gradients = problem()
    tiny = jax.tree.map(lambda g: 1e-8 * g, gradients)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.diffgrad(0.01, eps=0.0), params, tiny)
        adam = optax_trajectory(optax.adam(0.005, eps=0.0), params, tiny)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), ours, adam)


def test_decay_is_part_of_the_gradient_that_is_compared() -> None:
    params, gradients = problem()
    ours, _ = trajectory(zoo.diffgrad(0.5, weight_decay=0.3), params, gradients)
    parts = optax.chain(optax.add_decayed_weights(0.3), zoo.scale_by_diffgrad(), optax.scale(-0.5))
    theirs = optax_trajectory(parts, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_a_negative_eps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^diffgrad: eps must be in \[0, inf\), got -1$"):
        zoo.diffgrad(0.1, eps=-1)
