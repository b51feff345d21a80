"""AdaBelief: limit identities and its flags."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def test_without_rectification_it_is_optax_adabelief() -> None:
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adabelief(0.01, rectify=False, eps=1e-12), *problem())
        theirs = optax_trajectory(optax.adabelief(0.01, eps=1e-12, eps_root=1e-12), *problem())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), ours, theirs)


def test_under_a_constant_gradient_the_residual_is_b1_to_the_t() -> None:
    g, b1, b2 = 2.0, 0.9, 0.999
    with jax.enable_x64(True):
        tx = zoo.scale_by_adabelief(b1, b2, eps=0.0)
        state, s = tx.init({"w": jnp.zeros(1)}), 0.0
        for t in range(1, 8):
            _, state = tx.update({"w": jnp.full(1, g)}, state)
            s = b2 * s + (1 - b2) * (b1**t * g) ** 2
            np.testing.assert_allclose(state.s["w"], s, rtol=1e-12)


@pytest.mark.parametrize("degenerated", [True, False])
def test_the_first_steps_are_sgd_with_momentum_or_nothing(degenerated: bool) -> None:
    params, gradients = problem(steps=4)
    ours, _ = trajectory(zoo.adabelief(0.1, degenerated_to_sgd=degenerated), params, gradients)
    for name, p in params.items():
        m = np.zeros_like(p)
        for t, g in enumerate(gradients[name], start=1):
            m = 0.9 * m + 0.1 * g
            p = p - 0.1 * m / (1 - 0.9**t) * degenerated
            np.testing.assert_allclose(ours[name][t - 1], p, rtol=2e-5, atol=1e-6)


def test_amsgrad_acts_only_without_rectification() -> None:
    params, gradients = problem(steps=30)
    gradients = jax.tree.map(lambda g: g * np.geomspace(1, 1e-3, 30).reshape(-1, *[1] * (g.ndim - 1)), gradients)

    def last(**flags: bool) -> np.ndarray:
        return trajectory(zoo.adabelief(0.01, b2=0.9, **flags), params, gradients)[0]["w"][-1]

    np.testing.assert_array_equal(last(amsgrad=True), last())
    assert np.abs(last(amsgrad=True, rectify=False) - last(rectify=False)).max() > 1e-4


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ({}, 1 - 0.1 * 0.5),
        ({"fixed_decay": True}, 1 - 0.5),
    ],
)
def test_decay_alone_shrinks_geometrically(flags: dict, kept: float) -> None:
    params, gradients = problem(steps=3)
    zero = jax.tree.map(np.zeros_like, gradients)
    ours, _ = trajectory(zoo.adabelief(0.1, weight_decay=0.5, **flags), params, zero)
    for name, p in params.items():
        np.testing.assert_allclose(ours[name], p * kept ** np.arange(1, 4).reshape(-1, *[1] * p.ndim), rtol=1e-5)


def test_coupled_decay_is_added_to_the_gradient() -> None:
    params, gradients = problem()
    coupled = zoo.adabelief(0.01, weight_decay=0.1, weight_decouple=False)
    chained = optax.chain(optax.add_decayed_weights(0.1), zoo.adabelief(0.01))
    with jax.enable_x64(True):
        ours, theirs = trajectory(coupled, params, gradients)[0], trajectory(chained, params, gradients)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


def test_a_mask_spares_leaves_from_decay() -> None:
    params, gradients = problem(steps=2)
    zero = jax.tree.map(np.zeros_like, gradients)
    for mask in ({"w": True, "b": False}, lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)):
        ours, _ = trajectory(zoo.adabelief(0.1, weight_decay=0.5, mask=mask), params, zero)
        np.testing.assert_allclose(ours["b"][-1], params["b"], rtol=1e-6)
        np.testing.assert_allclose(ours["w"][-1], params["w"] * 0.95**2, rtol=1e-5)
