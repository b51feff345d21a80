"""SWA: which points are collected, and the learning rates that visit them."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

GOLDEN = Path(__file__).parents[2] / "golden" / "schedules.basic.npz"


@pytest.mark.parametrize(("start", "freq"), [(1, 1), (4, 3), (0, 2), (100, 1)])
def test_the_mean_of_the_collected_points(start: int, freq: int) -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        trained, averaged = trajectory(zoo.with_swa(optax.sgd(0.1), start, freq), params, gradients)
    for name, points in trained.items():
        for t in range(1, 13):
            collected = [points[i - 1] for i in range(1, t + 1) if i >= start and (i - start) % freq == 0]
            expected = np.mean(collected, axis=0) if collected else points[t - 1]
            np.testing.assert_allclose(averaged[name][t - 1], expected, rtol=1e-12)


def test_bfloat16_parameters_keep_a_float32_mean() -> None:
    state = zoo.with_swa(optax.sgd(0.1), 1).init({"w": jnp.ones(2, jnp.bfloat16)})
    assert state.mean["w"].dtype == jnp.float32


def test_the_authors_learning_rates() -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        arrays = dict(file)
    extra = json.loads(str(arrays["meta"]))["extra"]
    const = {key: extra["swa_const"][key] for key in ("lr_init", "swa_lr", "swa_start")}
    cyclic = {key: extra["swa_cyclic"][key] for key in ("alpha1", "alpha2", "c")}
    with jax.enable_x64(True):
        epochs = jax.vmap(zoo.swa_lr_schedule(**const))(arrays["in/step"])
        steps = jax.vmap(zoo.cyclic_lr(**cyclic))(np.arange(len(arrays["out/swa_cyclic"])))
    np.testing.assert_allclose(epochs, arrays["out/swa_const"], rtol=1e-9)
    np.testing.assert_allclose(steps, arrays["out/swa_cyclic"], rtol=1e-9)


def torch_swalr(swa_lr: float, steps: int, cosine: bool, rate: float, calls: int) -> list[float]:
    """What `torch.optim.swa_utils.SWALR` sets: at each call it undoes its last interpolation and does the next."""

    def weight(step: int) -> float:
        t = max(0.0, min(1.0, step / max(1, steps)))
        return (1 - np.cos(np.pi * t)) / 2 if cosine else t

    rates = [rate]
    for step in range(1, calls):
        before, now = weight(step - 1), weight(step)
        first = rates[-1] if before == 1 else (rates[-1] - before * swa_lr) / (1 - before)
        rates.append(swa_lr * now + first * (1 - now))
    return rates


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_swalr_is_torchs(anneal: Any) -> None:
    with jax.enable_x64(True):
        ours = jax.vmap(zoo.swalr(0.05, 7, anneal, lr_init=0.3))(np.arange(12))
    np.testing.assert_allclose(ours, torch_swalr(0.05, 7, anneal == "cos", 0.3, 12), rtol=1e-12)


def test_swalr_takes_over_from_a_schedule() -> None:
    before = optax.linear_schedule(1.0, 0.0, 10)
    schedule = jax.jit(zoo.swalr(0.1, 4, "linear", lr_init=before, start=5))
    np.testing.assert_allclose(
        [schedule(i) for i in range(12)],
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1],
        rtol=1e-6,
    )


def test_swalr_without_steps_jumps() -> None:
    schedule = zoo.swalr(0.1, 0, lr_init=0.5, start=2)
    np.testing.assert_allclose([schedule(i) for i in range(4)], [0.5, 0.5, 0.1, 0.1], rtol=1e-6)


def test_the_schedules_drive_an_optimizer() -> None:
    params, gradients = problem()
    tx = zoo.with_swa(optax.sgd(zoo.cyclic_lr(0.1, 0.01, 4)), start=4, freq=4)
    with jax.enable_x64(True):
        trained, averaged = trajectory(tx, params, gradients)
    for name, points in trained.items():
        rates = np.tile([0.0775, 0.055, 0.0325, 0.01], 3).reshape(-1, *[1] * (points.ndim - 1))
        np.testing.assert_allclose(points, params[name] - np.cumsum(rates * gradients[name], axis=0), rtol=1e-12)
        np.testing.assert_allclose(averaged[name][-1], points[3::4].mean(axis=0), rtol=1e-12)


def test_the_mean_beats_the_last_iterate_at_a_constant_rate() -> None:
    noise = jax.random.normal(jax.random.key(0), (1000, 20))
    tx = zoo.with_swa(optax.sgd(0.3), start=200, freq=5)

    def step(carry: Any, e: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(params - 1.0 + e, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.zeros(20)
    (last, state), _ = jax.lax.scan(step, (start, tx.init(start)), noise)
    assert state.n == 161
    assert jnp.linalg.norm(zoo.eval_params(state, last) - 1.0) < 0.3 * jnp.linalg.norm(last - 1.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with_swa: freq must be in \[1, inf\), got 0"):
        zoo.with_swa(optax.sgd(0.1), 1, 0)
    with pytest.raises(ValueError, match="swalr: anneal must be one of 'cos', 'linear', got 'exp'"):
        zoo.swalr(0.1, anneal="exp", lr_init=0.1)
    with pytest.raises(ValueError, match=r"cyclic_lr: c must be in \[1, inf\), got 0"):
        zoo.cyclic_lr(0.1, 0.01, 0)
    with pytest.raises(TypeError, match="swa_lr_schedule: swa_lr must be a number here"):
        zoo.swa_lr_schedule(0.1, optax.constant_schedule(0.1), 10)
