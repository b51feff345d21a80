"""Schedule-free learning: the three sequences, the weights of the average, the first steps, and optax's own."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def replay(tx: optax.GradientTransformation, steps: int = 12) -> tuple[Any, Any, Any, Any]:
    """First parameters, gradients, and y and x after each step, in float64."""
    params, gradients = problem(steps)
    with jax.enable_x64(True):
        y, x = trajectory(tx, params, gradients)
    return params, gradients, y, x


def boxes(
    p: np.ndarray, directions: Any, rates: Any, b1: float, weight_decay: float, r: float, power: float
) -> tuple[np.ndarray, np.ndarray]:
    """y and x of the paper's algorithm, all three sequences kept; `directions[t - 1](g)` come from the caller."""
    x = y = z = p
    lr_max = weight_sum = 0.0
    ys, xs = [], []
    for t, (d, lr) in enumerate(zip(directions, rates, strict=True), start=1):
        z = z - lr * (d + weight_decay * y)
        lr_max = max(lr_max, lr)
        w = t**r * lr_max**power
        weight_sum += w
        c = w / weight_sum if weight_sum > 0 else 0.0
        x = (1 - c) * x + c * z
        y = b1 * x + (1 - b1) * z
        ys.append(y)
        xs.append(x)
    return np.stack(ys), np.stack(xs)


def second_moments(gradients: np.ndarray, b2: float) -> list[np.ndarray]:
    nu, moments = np.zeros_like(gradients[0]), []
    for g in gradients:
        nu = b2 * nu + (1 - b2) * g * g
        moments.append(nu)
    return moments


def assert_follows(tx: Any, transcription: Any) -> None:
    """`transcription(p, gradients) -> (directions, rates, settings of boxes)` for each leaf."""
    params, gradients, y, x = replay(tx)
    for name, p in params.items():
        directions, rates, settings = transcription(gradients[name])
        ys, xs = boxes(p, directions, rates, **settings)
        np.testing.assert_allclose(y[name], ys, rtol=1e-10)
        np.testing.assert_allclose(x[name], xs, rtol=1e-10, atol=1e-13)


SETTINGS = {"weight_decay": 0.1, "r": 0.5, "power": 1.5}
FLAGS = {"weight_decay": 0.1, "r": 0.5, "weight_lr_power": 1.5}


def test_sgd_follows_the_box() -> None:
    rates = [0.3 * min(t / 5, 1) for t in range(1, 13)]
    tx = zoo.schedule_free_sgd(0.3, 0.8, warmup_steps=5, **FLAGS)
    assert_follows(tx, lambda gradients: (gradients, rates, {"b1": 0.8, **SETTINGS}))


def test_the_average_weighs_a_falling_rate_by_the_largest_so_far() -> None:
    rates = [0.3 / t for t in range(1, 13)]
    with jax.enable_x64(True):
        table = jnp.asarray(rates)
    tx = zoo.schedule_free_sgd(lambda count: table[count], 0.8, **FLAGS)
    assert_follows(tx, lambda gradients: (gradients, rates, {"b1": 0.8, **SETTINGS}))


@pytest.mark.parametrize("bias_correction", ["adam", "paper"])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_adamw_follows_the_box(bias_correction: Any, momentum: float) -> None:
    b2, eps = 0.98, 1e-3
    paper = bias_correction == "paper"
    bias2 = [1 - b2**t for t in range(1, 13)]
    rates = [0.05 * min(t / 5, 1) * (math.sqrt(b) if paper else 1) for t, b in enumerate(bias2, start=1)]

    def transcription(gradients: np.ndarray) -> Any:
        m, directions = np.zeros_like(gradients[0]), []
        for t, (g, nu) in enumerate(zip(gradients, second_moments(gradients, b2), strict=True), start=1):
            m = momentum * m + (1 - momentum) * g
            root = np.sqrt(nu if paper else nu / bias2[t - 1])
            directions.append(m / (1 - momentum**t) / (root + eps))
        return directions, rates, {"b1": 0.8, **SETTINGS}

    tx = zoo.schedule_free_adamw(
        0.05, 0.8, b2, eps, warmup_steps=5, inner_momentum=momentum, bias_correction=bias_correction, **FLAGS
    )
    assert_follows(tx, transcription)


@pytest.mark.parametrize("silent", [True, False])
def test_radam_follows_the_box(silent: bool) -> None:
    b2, eps = 0.99, 1e-3
    rho_inf = 2 / (1 - b2) - 1
    rho = [rho_inf - 2 * t * b2**t / (1 - b2**t) for t in range(1, 13)]
    assert sum(length <= 4 for length in rho) == 4

    def rectified(length: float) -> float:
        if length <= 4:
            return 0.0 if silent else 1.0
        numerator, denominator = (length - 4) * (length - 2) * rho_inf, (rho_inf - 4) * (rho_inf - 2) * length
        return math.sqrt(numerator / denominator)

    def transcription(gradients: np.ndarray) -> Any:
        roots = [np.sqrt(nu / (1 - b2**t)) for t, nu in enumerate(second_moments(gradients, b2), start=1)]
        directions = [
            g / (root + eps) if length > 4 else g for g, root, length in zip(gradients, roots, rho, strict=True)
        ]
        return directions, [0.05 * rectified(length) for length in rho], {"b1": 0.8, **SETTINGS}

    assert_follows(zoo.schedule_free_radam(0.05, 0.8, b2, eps, silent_sgd_phase=silent, **FLAGS), transcription)


@pytest.mark.parametrize("b2", [0.999, 0.99999])
def test_radams_silent_phase_lasts_four_steps_in_float32(b2: float) -> None:
    params, gradients = jax.tree.map(lambda leaf: leaf.astype(np.float32), problem(steps=6))
    y, x = trajectory(zoo.schedule_free_radam(0.01, b2=b2), params, gradients)
    for name, p in params.items():
        np.testing.assert_array_equal(y[name][:4], np.broadcast_to(p, (4, *p.shape)))
        np.testing.assert_allclose(x[name][:4], y[name][:4], rtol=1e-5)
        assert (y[name][4] != p).all()


def test_with_equal_weights_x_is_the_mean_of_z() -> None:
    params, gradients, _, x = replay(zoo.schedule_free_sgd(0.3))
    for name, p in params.items():
        z = p - 0.3 * np.cumsum(gradients[name], axis=0)
        mean = np.cumsum(z, axis=0) / np.arange(1.0, 13.0).reshape(-1, *[1] * p.ndim)
        np.testing.assert_allclose(x[name], mean, rtol=1e-11)


def test_b1_near_one_is_primal_averaging() -> None:
    _, _, y, x = replay(zoo.schedule_free_sgd(0.3, 1 - 1e-9))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), y, x)


def test_x_survives_a_b1_that_changes() -> None:
    with jax.enable_x64(True):
        table = jnp.linspace(0.6, 0.95, 12)
    params, gradients, y, x = replay(zoo.schedule_free_sgd(0.3, lambda count: table[count]))
    for name, p in params.items():
        z = p - 0.3 * np.cumsum(gradients[name], axis=0)
        counts = np.arange(1.0, 13.0).reshape(-1, *[1] * p.ndim)
        mean, b1 = np.cumsum(z, axis=0) / counts, np.asarray(table).reshape(counts.shape)
        np.testing.assert_allclose(x[name], mean, rtol=1e-10)
        np.testing.assert_allclose(y[name], b1 * mean + (1 - b1) * z, rtol=1e-10)


PAIRS = {
    "sgd": (
        zoo.schedule_free_sgd(0.3, weight_decay=0.1),
        optax.contrib.schedule_free_sgd(0.3, weight_decay=0.1),
    ),
    "adamw": (
        zoo.schedule_free_adamw(0.02, 0.95, weight_decay=0.1),
        optax.contrib.schedule_free_adamw(0.02, b1=0.95, weight_decay=0.1),
    ),
    "generic": (
        zoo.schedule_free(optax.rmsprop(0.02), 0.02, weight_lr_power=1.0),
        optax.contrib.schedule_free(optax.rmsprop(0.02), 0.02, weight_lr_power=1.0),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_without_warm_up_it_is_optax_contribs(name: str) -> None:
    ours, theirs = PAIRS[name]
    with jax.enable_x64(True):
        expected = optax_trajectory(theirs, *problem())
        y = optax_trajectory(ours, *problem())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), y, expected)


def test_the_generic_form_of_sgd_is_the_alias() -> None:
    ours, _ = PAIRS["sgd"]
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3))
    _, _, y, x = replay(ours)
    _, _, generic_y, generic_x = replay(zoo.schedule_free(inner, 0.3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), (generic_y, generic_x), (y, x))


def test_bfloat16_parameters_keep_float32_state() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = zoo.schedule_free_adamw().init(params)
    assert (state.z["w"].dtype, state.weight_sum.dtype, state.lr_max.dtype) == 3 * (jnp.float32,)
    assert zoo.schedule_free_sgd(state_dtype=jnp.bfloat16).init(params).z["w"].dtype == jnp.bfloat16


def test_the_weights_do_not_stall_with_bfloat16_parameters() -> None:
    params, gradients = {"w": jnp.zeros(1, jnp.bfloat16)}, {"w": np.zeros((2000, 1), jnp.bfloat16)}
    tx = zoo.schedule_free_sgd(0.5)

    def step(state: Any, grads: Any) -> tuple[Any, None]:
        return tx.update(grads, state, params)[1], None

    state, _ = jax.lax.scan(step, tx.init(params), gradients)
    np.testing.assert_allclose(state.weight_sum, 2000 * 0.25, rtol=1e-5)


def test_without_momentum_there_is_no_slot_for_it() -> None:
    params = {"w": jnp.ones(3)}
    assert zoo.schedule_free_adamw().init(params).m is None
    assert zoo.schedule_free_adamw(inner_momentum=0.9).init(params).m["w"].shape == (3,)
    assert zoo.schedule_free_sgd().init(params).nu is None


def test_the_average_beats_the_point_of_the_gradient_under_noise() -> None:
    noise = jax.random.normal(jax.random.key(0), (2000, 20))
    tx = zoo.schedule_free_sgd(0.5)

    def step(carry: Any, e: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(params - 1.0 + e, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.zeros(20)
    (y, state), _ = jax.lax.scan(step, (start, tx.init(start)), noise)
    x = zoo.eval_params(state, y)
    assert jnp.linalg.norm(x - 1.0) < 0.7 * jnp.linalg.norm(y - 1.0)
    assert jnp.linalg.norm(x - 1.0) < 0.3 * jnp.linalg.norm(state.z - 1.0)


@pytest.mark.parametrize("b1", [0.0, 1.0])
def test_b1_must_leave_a_share_to_both(b1: float) -> None:
    for make in (zoo.schedule_free_sgd, zoo.schedule_free_adamw, zoo.schedule_free_radam):
        with pytest.raises(ValueError, match=rf"{make.__name__}: b1 must be in \(0, 1\), got {b1}"):
            make(0.1, b1)
    with pytest.raises(ValueError, match=r"schedule_free: b1 must be in \(0, 1\)"):
        zoo.schedule_free(optax.sgd(0.1), 0.1, b1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="bias_correction must be one of 'adam', 'paper', got 'none'"):
        zoo.schedule_free_adamw(bias_correction="none")
    params = {"w": jnp.ones(2)}
    for tx, name in ((zoo.schedule_free_sgd(), "schedule_free_sgd"), (PAIRS["generic"][0], "schedule_free")):
        with pytest.raises(ValueError, match=f"{name}: needs params"):
            tx.update(params, tx.init(params))
