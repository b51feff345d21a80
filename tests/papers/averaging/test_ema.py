"""EMA and uniform mean of the parameters: what the weights of the average are, and when it is taken."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory


def walk(wrap: Any, steps: int = 12) -> tuple[Any, Any, Any]:
    """First parameters, parameters and averages after each step, in float64."""
    params, gradients = problem(steps)
    with jax.enable_x64(True):
        trained, averaged = trajectory(wrap(optax.sgd(0.1)), params, gradients)
    return params, trained, averaged


def recursion(start: np.ndarray, points: np.ndarray, decays: Any) -> np.ndarray:
    averages = []
    for p, b in zip(points, decays, strict=True):
        start = b * start + (1 - b) * p
        averages.append(start)
    return np.stack(averages)


def assert_equal_trees(ours: Any, expected: Any, rtol: float = 1e-12) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-15), ours, expected)


def test_updates_of_the_inner_optimizer_pass_through() -> None:
    params, trained, _ = walk(zoo.with_ema)
    with jax.enable_x64(True):
        alone, _ = trajectory(optax.sgd(0.1), params, problem()[1])
    jax.tree.map(np.testing.assert_array_equal, trained, alone)


@pytest.mark.parametrize("init", ["params", "first", "zeros"])
def test_init_decides_what_the_average_starts_from(init: Any) -> None:
    params, trained, averaged = walk(lambda inner: zoo.with_ema(inner, 0.8, init=init))
    for name, points in trained.items():
        decays = [0.0 if init == "first" else 0.8] + 11 * [0.8]
        start = np.zeros_like(params[name]) if init == "zeros" else params[name]
        np.testing.assert_allclose(averaged[name], recursion(start, points, decays), rtol=1e-12)


def rising(count: Any) -> Any:
    return 1 - 1 / (jnp.asarray(count, float) + 1)


@pytest.mark.parametrize("decay", [0.8, lambda count: 0.7 * rising(count)])
def test_debiasing_normalises_the_weights(decay: Any) -> None:
    _, trained, averaged = walk(lambda inner: zoo.with_ema(inner, decay, init="zeros", debias=True))
    b = np.asarray([0.7 * (1 - 1 / t) if callable(decay) else decay for t in range(1, 13)])
    weights = (1 - b) * np.asarray([np.prod(b[i + 1 :]) for i in range(12)])
    for name, points in trained.items():
        np.testing.assert_allclose(averaged[name][-1], np.average(points, axis=0, weights=weights), rtol=1e-12)


def test_a_plain_schedule_counts_from_zero_and_a_decay_from_one() -> None:
    _, _, from_zero = walk(lambda inner: zoo.with_ema(inner, rising))
    _, _, from_one = walk(lambda inner: zoo.with_ema(inner, zoo.power_ema_decay(0.0)))
    assert_equal_trees(from_zero, from_one)


def test_power_law_of_gamma_zero_is_the_uniform_mean() -> None:
    _, trained, power = walk(lambda inner: zoo.with_ema(inner, zoo.power_ema_decay(0.0)))
    _, _, polyak = walk(zoo.with_polyak)
    counts = np.arange(1.0, 13.0)
    for name, points in trained.items():
        mean = np.cumsum(points, axis=0) / counts.reshape(-1, *[1] * (points.ndim - 1))
        np.testing.assert_allclose(power[name], mean, rtol=1e-12)
        np.testing.assert_allclose(polyak[name], mean, rtol=1e-12)


def test_power_law_of_large_gamma_is_the_last_iterate() -> None:
    _, trained, averaged = walk(lambda inner: zoo.with_ema(inner, zoo.power_ema_decay(1e4)))
    assert_equal_trees(averaged, trained)


def test_power_law_weights_grow_like_t_to_the_gamma() -> None:
    decays = np.asarray([zoo.power_ema_decay(3.0)(t) for t in range(1, 401)], np.float64)
    weights = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
    ratio = weights[99:] / np.arange(100.0, 401.0) ** 3
    np.testing.assert_allclose(ratio / ratio[-1], 1, atol=0.02)


@pytest.mark.parametrize("gamma", [0.5, 6.94, 16.97])
def test_gamma_from_the_relative_width(gamma: float) -> None:
    width = np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)
    np.testing.assert_allclose(zoo.power_ema_gamma(float(width)), gamma, rtol=1e-9)


def test_gamma_of_the_papers_widths() -> None:
    np.testing.assert_allclose([zoo.power_ema_gamma(s) for s in (0.05, 0.10)], [16.97, 6.94], atol=0.005)


def test_warm_up_decay() -> None:
    decay = zoo.warmup_ema_decay(0.9)
    np.testing.assert_allclose([decay(t) for t in (1, 10, 1000)], [2 / 11, 11 / 20, 0.9], rtol=1e-6)


def test_inverse_power_decay() -> None:
    decay = zoo.inverse_power_ema_decay(0.99, inv_gamma=2.0, power=0.75, min_value=0.4, start=3)
    expected = [0.0 if t <= 4 else np.clip(1 - (1 + (t - 4) / 2) ** -0.75, 0.4, 0.99) for t in range(1, 2000)]
    np.testing.assert_allclose(jax.vmap(decay)(np.arange(1, 2000)), expected, rtol=1e-6)


def test_update_every_skips_steps_and_start_copies() -> None:
    params, trained, averaged = walk(lambda inner: zoo.with_ema(inner, 0.8, update_every=3, start=4))
    for name, points in trained.items():
        decays = [1 if (t - 1) % 3 else 0.0 if t - 1 <= 4 else 0.8 for t in range(1, 13)]
        np.testing.assert_allclose(averaged[name], recursion(params[name], points, decays), rtol=1e-12)


def test_polyak_leaves_the_first_steps_out() -> None:
    _, trained, averaged = walk(lambda inner: zoo.with_polyak(inner, start=4))
    for name, points in trained.items():
        np.testing.assert_allclose(averaged[name][:5], points[:5], rtol=1e-12)
        np.testing.assert_allclose(averaged[name][-1], points[4:].mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("settings", [{"decay": 0.9999}, {"decay": 0.9999, "init": "zeros", "debias": True}])
def test_constant_parameters_are_their_own_average_in_float32(settings: Any) -> None:
    params = {"w": jnp.asarray([1e-3, 0.1, 1234.5], jnp.float32)}
    gradients = {"w": np.zeros((20_000, 3), np.float32)}
    _, averaged = trajectory(zoo.with_ema(optax.sgd(0.1), **settings), params, gradients)
    np.testing.assert_allclose(averaged["w"], np.broadcast_to(params["w"], (20_000, 3)), rtol=2e-5)


def test_the_first_weights_of_a_slow_average_are_exact_in_float32() -> None:
    gradients = {"w": np.full((1, 1), -1.0, np.float32)}
    params = {"w": jnp.zeros(1)}
    _, averaged = trajectory(zoo.with_ema(optax.sgd(1.0), 1 - 1e-6), params, gradients)
    np.testing.assert_allclose(averaged["w"], 1e-6, rtol=1e-6)


def test_bfloat16_parameters_keep_a_float32_average() -> None:
    tx = zoo.with_ema(optax.sgd(0.5), 0.999)
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    state = tx.init(params)
    assert state.ema["w"].dtype == jnp.float32
    updates, state = tx.update({"w": jnp.ones(4, jnp.bfloat16)}, state, params)
    np.testing.assert_allclose(state.ema["w"], 1 - 0.001 * 0.5, rtol=1e-6)
    assert zoo.eval_params(state, params)["w"].dtype == updates["w"].dtype == jnp.bfloat16


def test_the_accumulator_is_never_narrower_than_the_parameters() -> None:
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2, jnp.float32)}
    state = zoo.with_ema(optax.sgd(0.1), accumulator_dtype=jnp.bfloat16).init(params)
    assert {name: leaf.dtype for name, leaf in state.ema.items()} == {name: p.dtype for name, p in params.items()}
    with pytest.raises(TypeError, match="with_ema: 'int32' is not a floating dtype such as 'bfloat16'"):
        zoo.with_ema(optax.sgd(0.1), accumulator_dtype=jnp.int32)


@pytest.mark.parametrize("wrap", [zoo.with_ema, zoo.with_polyak, lambda inner: zoo.with_swa(inner, 1)])
def test_integer_leaves_are_copied(wrap: Any) -> None:
    inner = optax.masked(optax.sgd(0.1), {"w": True, "n": False})
    tx = wrap(inner)
    params = {"w": jnp.ones(2), "n": jnp.asarray(3)}
    updates, state = tx.update({"w": jnp.ones(2), "n": jnp.asarray(2)}, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    averaged = zoo.eval_params(state, params)
    assert (averaged["n"].dtype, int(averaged["n"])) == (jnp.int32, 5)


def test_parameters_without_gradient_stay_in_the_average() -> None:
    tx = zoo.with_ema(optax.sgd(0.1), 0.9)
    params = {"w": jnp.ones(2), "frozen": jnp.full(2, 7.0), "absent": None}
    _, state = tx.update({"w": jnp.ones(2), "frozen": None, "absent": None}, tx.init(params), params)
    averaged = zoo.eval_params(state, params)
    np.testing.assert_allclose(averaged["frozen"], 7.0)
    np.testing.assert_allclose(averaged["w"], 0.99, rtol=1e-6)
    assert averaged["absent"] is None


def test_the_average_beats_the_last_iterate_under_noise() -> None:
    noise = jax.random.normal(jax.random.key(0), (2000, 20))

    def distances(wrap: Any) -> tuple[float, float]:
        tx = wrap(optax.sgd(0.3))

        def step(carry: Any, e: Any) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(params - 1.0 + e, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros(20)
        (last, state), _ = jax.lax.scan(step, (start, tx.init(start)), noise)
        average = zoo.eval_params(state, last)
        return float(jnp.linalg.norm(average - 1.0)), float(jnp.linalg.norm(last - 1.0))

    for wrap in (lambda inner: zoo.with_ema(inner, 0.99), zoo.with_polyak):
        average, last = distances(wrap)
        assert average < 0.3 * last


def test_what_cannot_be_is_refused() -> None:
    inner = optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"with_ema: decay must be in \[0, 1\], got 1.5"):
        zoo.with_ema(inner, 1.5)
    with pytest.raises(ValueError, match="with_ema: init must be one of 'params', 'first', 'zeros', got 'last'"):
        zoo.with_ema(inner, init="last")
    with pytest.raises(ValueError, match="with_ema: debias needs init=\"zeros\", got init='params'"):
        zoo.with_ema(inner, debias=True)
    with pytest.raises(TypeError, match=r"with_ema: inner must be an optax.GradientTransformation, got 0.1"):
        zoo.with_ema(0.1)
    with pytest.raises(ValueError, match=r"power_ema_gamma: sigma_rel must be in \(0, 0.3\], got 0.5"):
        zoo.power_ema_gamma(0.5)
    with pytest.raises(TypeError, match="power_ema_decay: gamma must be a number here"):
        zoo.power_ema_decay(optax.constant_schedule(1.0))
    params = {"w": jnp.ones(2)}
    tx = zoo.with_ema(inner)
    with pytest.raises(ValueError, match="with_ema: needs params"):
        tx.update(params, tx.init(params))
