"""Learning rates as functions of the step: the authors' values, and what cannot be."""

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
COOLDOWNS = {
    "linear": "linear",
    "sqrt": "sqrt",
    "cosine": "cosine",
    "square": "square",
    "mirror_cosine": "miror_cosine",
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    return {**arrays, **json.loads(str(arrays.pop("meta")))["extra"]}


def values(schedule: optax.Schedule, steps: Any) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(schedule))(steps))


@pytest.mark.parametrize("decay", COOLDOWNS)
def test_wsd_is_the_authors(recorded: dict[str, Any], decay: Any) -> None:
    ours = values(zoo.wsd(3.0, decay=decay, **recorded["wsd"]), recorded["in/step"])
    np.testing.assert_allclose(ours, 3.0 * recorded[f"out/wsd_{COOLDOWNS[decay]}"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("key", "final_factor"), [("d2z", 0.0), ("tenx", 0.1)])
def test_linear_to_zero_is_the_papers(recorded: dict[str, Any], key: str, final_factor: float) -> None:
    ours = values(zoo.linear_to_zero(2.0, final_factor=final_factor, **recorded["d2z"]), recorded["in/step"])
    np.testing.assert_allclose(ours, 2.0 * recorded[f"out/{key}"], rtol=1e-9, atol=1e-12)


def test_an_exponential_cooldown_halves_evenly() -> None:
    ours = values(zoo.wsd(1.0, 10, 0, 0.4, "exp", final_factor=1 / 16), np.arange(12))
    np.testing.assert_allclose(ours, [1] * 7 + [0.5, 0.25, 0.125, 0.0625, 0.0625], rtol=1e-12)


def test_without_warmup_the_first_rate_is_the_peak() -> None:
    assert zoo.linear_to_zero(0.5, 10)(0) == 0.5
    assert zoo.wsd(0.5, 10, 0)(0) == 0.5


def test_schedules_take_traced_numbers() -> None:
    def last(steps: Any) -> Any:
        return zoo.wsd(1.0, steps, 2, 0.5)(7), zoo.linear_to_zero(1.0, steps, 2)(7)

    expected = [last(float(steps)) for steps in (10, 12)]
    np.testing.assert_allclose(np.stack(jax.vmap(last)(jnp.asarray([10.0, 12.0])), axis=1), expected, rtol=1e-6)


def test_a_schedule_drives_an_optimizer() -> None:
    params, gradients = problem(steps=5)
    schedule = zoo.linear_to_zero(1.0, 5)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adabelief(schedule), params, gradients)
        constant, _ = trajectory(zoo.adabelief(1.0), params, gradients)
    for name, start in params.items():
        steps = np.diff(constant[name], axis=0, prepend=start[None])
        rates = np.asarray([1.0, 0.8, 0.6, 0.4, 0.2]).reshape(-1, *[1] * start.ndim)
        np.testing.assert_allclose(ours[name], start + np.cumsum(rates * steps, axis=0), rtol=1e-9)


@pytest.mark.parametrize(("rule", "factor"), [("linear", 16.0), ("sqrt", 4.0)])
def test_the_rate_for_another_batch(rule: Any, factor: float) -> None:
    assert zoo.scale_lr_for_batch(0.25, 1024, 64, rule) == 0.25 * factor
    schedule = zoo.scale_lr_for_batch(optax.linear_schedule(1.0, 0.0, 4), 1024, 64, rule)
    assert callable(schedule) and schedule(3) == 0.25 * factor


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="linear_to_zero: warmup_steps must be below total_steps, got 10 and 10"):
        zoo.linear_to_zero(1.0, 10, 10)
    with pytest.raises(ValueError, match=r"wsd: the cooldown, 0.8 of 100 steps, must begin after warmup_steps, 30"):
        zoo.wsd(1.0, 100, 30, 0.8)
    with pytest.raises(ValueError, match=r"wsd: decay must be one of .*, got 'sqr'; did you mean 'sqrt'"):
        zoo.wsd(1.0, 100, 10, decay="sqr")
    with pytest.raises(ValueError, match=r"wsd: final_factor must be in \(0, 1\], got 0"):
        zoo.wsd(1.0, 100, 10, decay="exp")
    with pytest.raises(ValueError, match="scale_lr_for_batch: rule must be one of 'linear', 'sqrt'"):
        zoo.scale_lr_for_batch(0.1, 2, 1, "square")
    with pytest.raises(ValueError, match=r"scale_lr_for_batch: base_batch must be in \(0, inf\), got 0"):
        zoo.scale_lr_for_batch(0.1, 2, 0, "sqrt")
