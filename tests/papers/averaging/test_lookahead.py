"""Lookahead: the box, optax's own, what a reset forgets, and the variance that the paper proves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.papers.averaging.walks import (
    MOMENTUM,
    assert_equal_trees,
    assert_float32_beside_bfloat16,
    assert_other_leaves_stay,
    descend,
    moves,
    only_w,
    walk,
)
from tests.support import optax_trajectory, problem


def box(start: np.ndarray, updates: np.ndarray, periods: Any, steps: Any) -> tuple[np.ndarray, np.ndarray]:
    """Fast and slow weights, with the period and the step size of each step."""
    fast = slow = start
    walked = []
    for t, (u, k, alpha) in enumerate(zip(updates, periods, steps, strict=True), start=1):
        fast = fast + u
        if t % k == 0:
            fast = slow = slow + alpha * (fast - slow)
        walked.append((fast, slow))
    fasts, slows = zip(*walked, strict=True)
    return np.stack(fasts), np.stack(slows)


def assert_follows_the_box(tx: optax.GradientTransformation, periods: Any, steps: Any) -> None:
    params, trained, averaged = walk(tx)
    for name, updates in moves(MOMENTUM).items():
        fast, slow = box(params[name], updates, periods, steps)
        np.testing.assert_allclose(trained[name], fast, rtol=1e-11)
        np.testing.assert_allclose(averaged[name], slow, rtol=1e-11)


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (1, 0.3), (4, 0.8), (3, 1.0)])
def test_the_box(k: int, alpha: float) -> None:
    assert_follows_the_box(zoo.lookahead(MOMENTUM, k, alpha), 12 * [k], 12 * [alpha])


def test_period_and_step_size_may_be_schedules() -> None:
    tx = zoo.lookahead(
        MOMENTUM, lambda count: jnp.where(count < 6, 2, 3), lambda count: 1 / jnp.asarray(count + 2, float)
    )
    assert_follows_the_box(tx, 6 * [2] + 6 * [3], [1 / (t + 1) for t in range(1, 13)])


@pytest.mark.parametrize("inner", [optax.sgd(0.1), MOMENTUM, optax.adam(0.1)])
@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_equals_that_of_optax(inner: optax.GradientTransformation, alpha: float) -> None:
    params, gradients = problem()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        _, trained, averaged = walk(zoo.lookahead(inner, 5, alpha))
        pair = optax_trajectory(optax.lookahead(inner, 5, alpha), optax.LookaheadParams.init_synced(params), gradients)
    assert_equal_trees((trained, averaged), (pair.fast, pair.slow), rtol=1e-10)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_reset_of_sgd_is_that_of_optax(nesterov: bool) -> None:
    params, gradients = problem()
    inner = optax.sgd(0.1, 0.9, nesterov)
    with jax.enable_x64(True):
        _, trained, averaged = walk(zoo.lookahead(inner, 4, pullback="reset"))
        pair = optax_trajectory(
            optax.lookahead(inner, 4, 0.5, reset_state=True), optax.LookaheadParams.init_synced(params), gradients
        )
        _, kept, _ = walk(zoo.lookahead(inner, 4))
    assert_equal_trees((trained, averaged), (pair.fast, pair.slow), rtol=1e-10)
    assert np.max(np.abs(kept["w"] - trained["w"])) > 0.01


def test_a_step_size_of_one_is_the_inner_optimizer() -> None:
    _, alone, _ = walk(MOMENTUM)
    _, trained, averaged = walk(zoo.lookahead(MOMENTUM, 3, 1.0))
    assert_equal_trees(trained, alone)
    assert_equal_trees(averaged["w"][2::3], alone["w"][2::3])


def test_a_period_of_one_scales_the_updates() -> None:
    _, scaled, _ = walk(optax.sgd(0.03))
    _, trained, averaged = walk(zoo.lookahead(optax.sgd(0.1), 1, 0.3))
    assert_equal_trees((trained, averaged), (scaled, scaled))


def test_a_period_beyond_the_end_keeps_the_first_slow_weights() -> None:
    params, trained, averaged = walk(zoo.lookahead(MOMENTUM, 10**10))
    _, alone, _ = walk(MOMENTUM)
    assert_equal_trees(trained, alone)
    np.testing.assert_array_equal(averaged["w"][-1], params["w"])


def after(inner: Any, steps: int, params: Any = None, **settings: Any) -> Any:
    """The inner state after some steps with gradients of one, of two between synchronisations."""
    params = {"w": jnp.zeros(2)} if params is None else params
    tx = zoo.lookahead(inner, 2, **settings)
    state = tx.init(params)
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return state.inner_state


def test_a_reset_reaches_momentum_inside_chains_and_spares_the_rest() -> None:
    inner = optax.chain(optax.clip(10.0), optax.trace(0.5), optax.ema(0.5), optax.scale_by_schedule(lambda _: -0.1))
    _, trace, average, schedule = after(inner, 2, pullback="reset")
    np.testing.assert_array_equal(trace.trace["w"], 0)
    np.testing.assert_allclose(average.ema["w"], 1.0)
    assert schedule.count == 2
    _, trace, _, _ = after(inner, 3, pullback="reset")
    np.testing.assert_allclose(trace.trace["w"], 1)
    _, trace, _, _ = after(inner, 2)
    np.testing.assert_allclose(trace.trace["w"], 1.5)


def test_a_reset_reaches_this_librarys_momentum() -> None:
    np.testing.assert_array_equal(after(zoo.sgdp(0.1, 0.9), 2, pullback="reset")[0].buf["w"], 0)
    assert np.all(np.asarray(after(zoo.sgdp(0.1, 0.9), 2)[0].buf["w"]) > 0)


def test_a_reset_spares_adam_and_parameters_named_like_momentum() -> None:
    params = {"momentum": jnp.zeros(2), "trace": jnp.zeros(2)}
    reset, kept = (after(optax.adam(0.1), 2, params, pullback=pullback) for pullback in ("reset", "none"))
    jax.tree.map(np.testing.assert_array_equal, reset, kept)
    assert np.all(np.asarray(reset[0].mu["momentum"]) > 0)


def test_a_reset_spares_the_injected_coefficient() -> None:
    state = after(optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.5), 2, pullback="reset")
    np.testing.assert_allclose(state.hyperparams["momentum"], 0.5)
    np.testing.assert_array_equal(state.inner_state[0].trace["w"], 0)


def test_a_predicate_says_what_is_momentum() -> None:
    asked = set()

    def is_first_moment(path: str, leaf: Any) -> bool:
        asked.add((path, leaf.shape))
        return "/mu/" in path

    state = after(optax.adam(0.1), 2, pullback="reset", reset_predicate=is_first_moment)
    assert asked == {("0/count", ()), ("0/mu/w", (2,)), ("0/nu/w", (2,))}
    np.testing.assert_array_equal(state[0].mu["w"], 0)
    assert np.all(np.asarray(state[0].nu["w"]) > 0)


def test_bfloat16_parameters_keep_float32_slow_weights() -> None:
    assert_float32_beside_bfloat16(zoo.lookahead(optax.sgd(0.1), 2, 0.3), "slow")


def test_float32_updates_of_bfloat16_parameters_pass_unrounded() -> None:
    params = jnp.ones(2, jnp.bfloat16)
    tx = zoo.lookahead(optax.sgd(0.1), 5)
    gradient = jnp.asarray([0.123456, 3e-5])
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_array_equal(updates, -0.1 * gradient)


def test_other_leaves_stay() -> None:
    assert_other_leaves_stay(zoo.lookahead(only_w(optax.sgd(0.1)), 2))


def test_a_not_a_number_between_synchronisations_leaves_the_slow_weights() -> None:
    params = jnp.ones(2)
    tx = zoo.lookahead(optax.sgd(0.1), 3)
    _, state = tx.update(jnp.full(2, jnp.nan), tx.init(params), params)
    np.testing.assert_array_equal(zoo.eval_params(state, params), params)


def test_the_variance_of_the_slow_weights_is_the_papers() -> None:
    """Proposition 2: a noisy quadratic, the same inner learning rate."""
    rate, k, alpha, curvature = 0.3, 5, 0.5, np.asarray([0.2, 1.0, 3.0])
    shrink = 1 - rate * curvature
    sgd = (rate * curvature) ** 2 / (1 - shrink**2)
    share = alpha**2 * (1 - shrink ** (2 * k))
    expected = share / (share + 2 * alpha * (1 - alpha) * (1 - shrink**k)) * sgd

    noise = jax.random.normal(jax.random.key(0), (150, 20_000, 3))
    start = jnp.zeros((20_000, 3))
    each = jnp.broadcast_to(jnp.asarray(curvature, jnp.float32), start.shape)
    _, state, evaluated = descend(zoo.lookahead(optax.sgd(rate), k, alpha), start, each, noise)
    last, _, _ = descend(optax.sgd(rate), start, each, noise)
    assert state.count == 150
    np.testing.assert_allclose(np.var(evaluated[-1], axis=0), expected, rtol=0.04)
    np.testing.assert_allclose(np.var(last, axis=0), sgd, rtol=0.04)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sync_period": 0}, r"lookahead: sync_period must be in \[1, inf\), got 0"),
        ({"slow_step_size": 0.0}, r"lookahead: slow_step_size must be in \(0, 1\], got 0.0"),
        ({"slow_step_size": 1.5}, r"lookahead: slow_step_size must be in \(0, 1\], got 1.5"),
        ({"pullback": "rest"}, "lookahead: pullback must be one of 'none', 'reset', got 'rest'; did you mean 'reset'?"),
        ({"reset_predicate": max}, "lookahead: reset_predicate needs pullback=\"reset\", got pullback='none'"),
    ],
)
def test_what_cannot_be_is_refused(settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        zoo.lookahead(optax.sgd(0.1), **settings)


def test_a_predicate_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"lookahead: reset_predicate must be a function of \(path, leaf\), got True"):
        zoo.lookahead(optax.sgd(0.1), pullback="reset", reset_predicate=True)
    with pytest.raises(TypeError, match=r"lookahead: inner must be an optax\.GradientTransformation, got 0\.1"):
        zoo.lookahead(0.1)


def test_parameters_are_needed() -> None:
    tx = zoo.lookahead(optax.sgd(0.1))
    with pytest.raises(ValueError, match="lookahead: needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
