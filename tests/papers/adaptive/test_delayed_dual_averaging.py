"""Delayed dual averaging: its limit without delay, arrivals in any order, and what asynchronous agents reach."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

ORDERS = {"in turn": [0, 1, 2, 3, 4, 5], "reversed": [5, 4, 3, 2, 1, 0], "mixed": [2, 0, 3, 1, 5, 4]}


def test_without_delay_it_is_adagrad_norm_dual_averaging() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.delayed_dual_averaging(0.7), params, gradients)
    squares = sum((gradients[key] ** 2).reshape(12, -1).sum(axis=1) for key in params)
    eta = 0.7 / np.sqrt(np.cumsum(squares))
    for key, start in params.items():
        total = np.cumsum(gradients[key], axis=0)
        expected = start - eta.reshape(-1, *[1] * start.ndim) * total
        np.testing.assert_allclose(ours[key], expected, rtol=1e-9)


@pytest.mark.parametrize("order", ORDERS.values(), ids=list(ORDERS))
def test_gamma_after_everything_has_arrived(order: list[int]) -> None:
    """Points are played while gradients of earlier ones are on their way; the sum does not depend on the way."""
    beta, plays_before_first_arrival = 0.5, 4
    gradients = np.random.default_rng(1).normal(size=(6, 3))
    tx = zoo.delayed_dual_averaging(1.0, beta=beta)
    x = jnp.zeros(3)
    state = tx.init(x)
    at_play = {i: zoo.received_norm_sum(state) for i in range(plays_before_first_arrival)}
    arrived_at_play: dict[int, set[int]] = {i: set() for i in at_play}
    arrived: list[int] = []
    gammas = [beta]
    for s in order:
        if s not in at_play:
            at_play[s], arrived_at_play[s] = zoo.received_norm_sum(state), set(arrived)
        updates, state = tx.update(jnp.asarray(gradients[s], jnp.float32), state, x, norm_sum_at_play=at_play[s])
        x = x + updates
        arrived.append(s)
        gammas.append(float(state.gamma))
    norms = np.linalg.norm(gradients, axis=1)
    lags = [sum(norms[k] for k in order[:i] if k not in arrived_at_play[s]) for i, s in enumerate(order)]
    expected = beta + sum(norms[s] ** 2 + 2 * norms[s] * lag for s, lag in zip(order, lags, strict=True))
    np.testing.assert_allclose(gammas[-1], expected, rtol=1e-5)
    assert all(later >= earlier for earlier, later in itertools.pairwise(gammas))
    np.testing.assert_allclose(zoo.received_norm_sum(state), norms.sum(), rtol=1e-6)
    np.testing.assert_allclose(x, -gradients.sum(axis=0) / np.sqrt(expected), rtol=1e-4, atol=1e-6)


def test_the_step_size_for_known_bounds() -> None:
    params, gradients = problem(steps=4)
    with jax.enable_x64(True):
        tx = zoo.delayed_dual_averaging(0.7, adaptive=False, max_delay=3, max_norm=5.0)
        ours, _ = trajectory(tx, params, gradients)
    for t in range(4):
        eta = 0.7 / (5.0 * np.sqrt((1 + 2 * 3) * (t + 1 + 3 + 1)))
        expected = params["w"] - eta * gradients["w"][: t + 1].sum(axis=0)
        np.testing.assert_allclose(ours["w"][t], expected, rtol=1e-9)


def test_agents_whose_answers_are_late_still_get_there() -> None:
    """The paper's claim: with gradients that are 7 points old the average of what is played is a solution."""
    solution = jnp.array([1.0, -1.0])
    tx = zoo.delayed_dual_averaging(2.0)
    update = jax.jit(tx.update)
    x = jnp.zeros(2)
    state = tx.init(x)
    in_flight, played = [], []
    for _ in range(300):
        played.append(np.asarray(x))
        in_flight.append((jnp.sign(x - solution), zoo.received_norm_sum(state)))
        if len(in_flight) > 7:
            g, then = in_flight.pop(0)
            updates, state = update(g, state, x, norm_sum_at_play=then)
            x = x + updates
    assert np.abs(np.mean(played[150:], axis=0) - np.asarray(solution)).max() < 0.1


def test_a_decaying_rate_does_not_lead_back_to_the_start() -> None:
    params, gradients = problem()
    towards = jax.tree.map(np.abs, gradients)
    ours, _ = trajectory(zoo.delayed_dual_averaging(optax.linear_schedule(1.0, 0.0, 11)), params, towards)
    constant, _ = trajectory(zoo.delayed_dual_averaging(1.0), params, towards)
    start = params["w"]
    moved, farthest = (np.linalg.norm(path["w"][-1] - start) for path in (ours, constant))
    assert 0.3 * farthest < moved < farthest


def test_the_norm_sum_is_found_through_nesting() -> None:
    params = {"w": jnp.ones(3)}
    tx = optax.chain(optax.identity(), optax.masked(zoo.delayed_dual_averaging(0.1), {"w": True}))
    _, state = tx.update({"w": jnp.array([3.0, 0.0, 4.0])}, tx.init(params), params)
    assert float(zoo.received_norm_sum(state)) == 5.0


@pytest.mark.parametrize("broken", ["gradient", "norm_sum_at_play"])
def test_an_arrival_that_is_not_finite_is_skipped(broken: str) -> None:
    tx = zoo.delayed_dual_averaging(0.1)
    x = jnp.ones(3)
    updates, state = tx.update(jnp.array([1.0, 2.0, 3.0]), tx.init(x), x)
    x = x + updates
    g = jnp.array([1.0, jnp.nan if broken == "gradient" else 1.0, 0.0])
    then = jnp.float32(jnp.nan if broken == "norm_sum_at_play" else 0.0)
    updates, after = tx.update(g, state, x, norm_sum_at_play=then)
    np.testing.assert_allclose(updates, 0.0, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, after._replace(count=0), state._replace(count=0))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="delayed_dual_averaging: adaptive=False needs max_delay"):
        zoo.delayed_dual_averaging(0.1, adaptive=False)
    with pytest.raises(ValueError, match="delayed_dual_averaging: adaptive=False needs max_norm"):
        zoo.delayed_dual_averaging(0.1, adaptive=False, max_delay=3)
    with pytest.raises(ValueError, match=r"delayed_dual_averaging: max_norm must be in \(0, inf\), got 0"):
        zoo.delayed_dual_averaging(0.1, max_norm=0.0)
    states: Any = optax.sgd(0.1).init(jnp.ones(3))
    with pytest.raises(
        ValueError, match="received_norm_sum: the state must hold one of delayed_dual_averaging, found 0"
    ):
        zoo.received_norm_sum(states)
