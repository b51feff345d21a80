"""AdEMAMix: limit identities, the two schedules, and float32 near b3 = 1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def test_without_the_slow_average_it_is_adamw() -> None:
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.ademamix(0.01, alpha=0.0, weight_decay=0.1), *problem())
        adamw = optax_trajectory(optax.adamw(0.01, weight_decay=0.1), *problem())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, adamw)


def test_equal_decays_scale_the_numerator() -> None:
    params, gradients = problem(steps=1)
    with jax.enable_x64(True):
        tx = zoo.scale_by_ademamix(b1=0.9, b3=0.9, alpha=3.0)
        u, _ = tx.update(jax.tree.map(lambda g: jnp.asarray(g[0]), gradients), tx.init(params))
    for name, g in gradients.items():
        np.testing.assert_allclose(u[name], (1 + 3 * 0.1) * g[0] / (np.abs(g[0]) + 1e-8), rtol=1e-12)


def test_matches_a_transcription_of_the_box_with_both_warm_ups() -> None:
    params, gradients = problem(steps=9)
    b1, b2, b3, alpha, rate, decay, warm = 0.9, 0.99, 0.999, 4.0, 0.01, 0.1, 5
    with jax.enable_x64(True):
        tx = zoo.ademamix(rate, b1, b2, b3, alpha, alpha_warmup=warm, b3_warmup=warm, weight_decay=decay)
        ours, _ = trajectory(tx, params, gradients)

    def half_life(b: float) -> float:
        return math.log(0.5) / math.log(b + 1e-8) - 1

    for name, p in params.items():
        m1 = m2 = nu = np.zeros_like(p)
        for t, g in enumerate(gradients[name], start=1):
            x = (1 - t / warm) * half_life(b1) + t / warm * half_life(b3)
            b3_t = 0.5 ** (1 / (x + 1)) if t < warm else b3
            m1, m2, nu = b1 * m1 + (1 - b1) * g, b3_t * m2 + (1 - b3_t) * g, b2 * nu + (1 - b2) * g * g
            u = (m1 / (1 - b1**t) + min(t / warm, 1) * alpha * m2) / (np.sqrt(nu / (1 - b2**t)) + 1e-8)
            p = p - rate * (u + decay * p)
            np.testing.assert_allclose(ours[name][t - 1], p, rtol=1e-10)


def test_the_schedules_count_from_one_and_end_at_their_targets() -> None:
    alpha = zoo.ademamix_alpha_schedule(5.0, 1.0, 4)
    np.testing.assert_allclose([alpha(t) for t in (1, 2, 4, 9)], [2.0, 3.0, 5.0, 5.0], rtol=1e-6)
    b3 = zoo.ademamix_b3_schedule(0.9999, 0.9, 100)
    np.testing.assert_allclose([b3(100), b3(1000)], 0.9999, rtol=1e-7)
    assert 0.9 < float(b3(1)) < float(b3(50)) < 0.9999


def test_without_eps_the_b3_schedule_is_the_papers_map() -> None:
    start, end, warm = 0.9, 0.9999, 50
    with jax.enable_x64(True):
        ours = [float(zoo.ademamix_b3_schedule(end, start, warm, eps=0.0)(t)) for t in range(1, warm)]
    ratio = np.arange(1, warm) / warm
    a, b = math.log(start), math.log(end)
    np.testing.assert_allclose(ours, np.exp(a * b / ((1 - ratio) * b + ratio * a)), rtol=1e-12)


def test_float32_keeps_the_slow_average_exact_near_one() -> None:
    gradients = {"w": np.ones((1, 2), np.float32)}
    for settings in ({}, {"b3_warmup": 1}):
        tx = zoo.scale_by_ademamix(b3=0.99999, **settings)
        _, state = tx.update({"w": jnp.asarray(gradients["w"][0])}, tx.init({"w": jnp.zeros(2)}))
        np.testing.assert_allclose(state.m2["w"], 1e-5, rtol=1e-6)


def test_mu_dtype_is_kept() -> None:
    tx = zoo.scale_by_ademamix(mu_dtype=jnp.bfloat16)
    params = {"w": jnp.ones((2, 2))}
    _, state = tx.update(params, tx.init(params))
    assert (state.m1["w"].dtype, state.m2["w"].dtype, state.nu["w"].dtype) == (
        jnp.bfloat16,
        jnp.bfloat16,
        jnp.float32,
    )


def test_a_warm_up_of_a_schedule_is_refused() -> None:
    with pytest.raises(TypeError, match="ademamix: alpha must be a number here, got the schedule"):
        zoo.ademamix(1e-3, alpha=optax.constant_schedule(5.0), alpha_warmup=10)
