"""AdaBound: the two limits of its bounds, schedules, decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def test_fast_closing_bounds_give_sgd_with_an_ema() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adabound(1e-3, final_lr=0.05, gamma=1e12), params, gradients)
        sgd = optax.chain(optax.ema(0.9, debias=False), optax.sgd(0.05))
        theirs = optax_trajectory(sgd, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)


@pytest.mark.parametrize("make", [zoo.adabound, zoo.amsbound])
def test_open_bounds_give_adam_with_eps_on_the_uncorrected_root(make: object) -> None:
    params, gradients = problem()
    gradients = jax.tree.map(lambda g: np.sort(np.abs(g), axis=0), gradients)
    with jax.enable_x64(True):
        ours, _ = trajectory(make(0.01, gamma=1e-14, eps=0.0), params, gradients)
        adam = optax_trajectory(optax.adam(0.01, eps=0.0), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, adam)


def test_step_sizes_stay_within_the_bounds() -> None:
    params, gradients = problem(steps=40)
    gamma, ratio = 0.1, 50.0
    tx = zoo.scale_by_adabound(final_lr_ratio=ratio, gamma=gamma)
    state = tx.init(params)
    for t in range(1, 41):
        g = jax.tree.map(lambda g, t=t: jnp.asarray(g[t - 1], jnp.float32), gradients)
        u, state = tx.update(g, state)
        size = np.asarray(u["w"] / state.m["w"])
        assert np.all(size >= ratio * (1 - 1 / (gamma * t + 1)) * (1 - 1e-5))
        assert np.all(size <= ratio * (1 + 1 / (gamma * t)) * (1 + 1e-5))


def test_a_schedule_shrinks_the_final_rate_in_proportion() -> None:
    params, gradients = problem()
    halved = zoo.adabound(lambda count: jnp.where(count < 6, 0.01, 0.005), final_lr=0.1, gamma=1e12)
    ours, _ = trajectory(halved, params, gradients)
    full, _ = trajectory(zoo.adabound(0.01, final_lr=0.1, gamma=1e12), params, gradients)
    np.testing.assert_allclose(
        np.diff(ours["w"], axis=0)[5:], 0.5 * np.diff(full["w"], axis=0)[5:], rtol=1e-3, atol=1e-6
    )


def test_decoupled_decay_ignores_the_learning_rate() -> None:
    params, gradients = problem(steps=1)
    zero = jax.tree.map(np.zeros_like, gradients)
    ours, _ = trajectory(zoo.adabound(1e-3, weight_decay=0.1, weight_decouple=True), params, zero)
    np.testing.assert_allclose(ours["w"][0], params["w"] * 0.9, rtol=1e-6)


def test_a_base_rate_of_zero_is_refused() -> None:
    warm_up = optax.linear_schedule(0.0, 1e-3, 10)
    with pytest.raises(ValueError, match=r"adabound: base_learning_rate must be in \(0, inf\), got 0"):
        zoo.adabound(warm_up)
    zoo.adabound(warm_up, base_learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"amsbound: final_lr must be in \(0, inf\), got -1"):
        zoo.amsbound(1e-3, final_lr=-1)
