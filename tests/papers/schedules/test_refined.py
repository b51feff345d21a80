"""Schedules from recorded gradient norms."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from optax_zoo.schedules.refined import median_filtered

GOLDEN = Path(__file__).parents[2] / "golden" / "schedules.basic.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("refined_l2", {"tau": 0.0, "normalize": None}),
        ("refined_l1", {"weights": "l1", "tau": 0.0, "normalize": None}),
        ("refined_l2_max1", {"tau": 0.0}),
        ("refined_l2_filtered", {"normalize": None}),
    ],
)
def test_factors_are_the_authors(recorded: dict[str, Any], key: str, arguments: dict[str, Any]) -> None:
    ours = zoo.refined_schedule(recorded["in/gnorms"], **arguments)
    theirs = recorded[f"out/{key}"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12 * theirs.max())


def test_the_filter_is_the_authors(recorded: dict[str, Any]) -> None:
    np.testing.assert_allclose(median_filtered(recorded["in/gnorms"], 0.1), recorded["out/filtered"], rtol=1e-9)


def test_constant_norms_give_linear_decay_to_zero() -> None:
    np.testing.assert_allclose(zoo.refined_schedule(np.full(11, 3.0)), np.linspace(1, 0, 11), atol=1e-12)


def test_own_weights_are_taken_as_they_are() -> None:
    factors = zoo.refined_schedule(np.ones(3), weights=np.array([1.0, 2.0, 3.0]), normalize=None)
    np.testing.assert_allclose(factors, np.array([5.0, 6.0, 0.0]) / 3.0)


@pytest.mark.parametrize(("norm", "expected"), [("l2", 5.0), ("l1", 7.0)])
def test_norms_are_recorded_and_become_a_schedule(norm: Any, expected: float) -> None:
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    tx = optax.chain(zoo.record_gradient_norms(3, norm), optax.masked(optax.sgd(0.1), True))
    state = tx.init(params)
    for scale in (1.0, 2.0, 0.5, 4.0):
        grads = {"a": jnp.full(1, 3.0 * scale), "b": jnp.full(1, -4.0 * scale)}
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(updates["a"], -0.3 * scale, rtol=1e-6)
    norms = zoo.recorded_gradient_norms(state)
    np.testing.assert_allclose(norms, expected * np.array([1.0, 2.0, 0.5]), rtol=1e-6)
    schedule = jax.jit(zoo.table_schedule(zoo.refined_schedule(norms, tau=0.0), 0.3))
    weights = norms**-2.0
    factors = weights * [weights[1] + weights[2], weights[2], 0.0]
    np.testing.assert_allclose(
        [schedule(i) for i in range(5)], 0.3 * factors[[0, 1, 2, 2, 2]] / factors.max(), rtol=1e-5
    )


def test_the_refined_schedule_warms_up_and_anneals_after_a_noisy_start() -> None:
    norms = np.concatenate([np.linspace(10.0, 1.0, 20), np.ones(80)])
    factors = zoo.refined_schedule(norms)
    peak = int(np.argmax(factors))
    assert 10 < peak < 30 and factors[0] < 0.1 and factors[-1] == 0.0
    assert np.all(np.diff(factors[peak:]) <= 0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="refined_schedule: grad_norms must be finite and above 0"):
        zoo.refined_schedule([1.0, float("nan")])
    with pytest.raises(
        ValueError, match=r"refined_schedule: grad_norms must have shape \(n,\) with n >= 2, got \(1,\)"
    ):
        zoo.refined_schedule([1.0])
    with pytest.raises(ValueError, match="refined_schedule: weights must be one of 'l2', 'l1', got 'l3'"):
        zoo.refined_schedule([1.0, 2.0], weights="l3")
    with pytest.raises(ValueError, match=r"refined_schedule: weights must have shape \(2,\), got \(3,\)"):
        zoo.refined_schedule([1.0, 2.0], weights=np.ones(3))
    with pytest.raises(ValueError, match=r"record_gradient_norms: steps must be in \[1, inf\), got 0"):
        zoo.record_gradient_norms(0)
    with pytest.raises(ValueError, match="recorded_gradient_norms: the state has no record_gradient_norms"):
        zoo.recorded_gradient_norms(optax.sgd(0.1).init(jnp.zeros(1)))
    with pytest.raises(ValueError, match="table_schedule: factors must have shape"):
        zoo.table_schedule(np.zeros((2, 2)))
