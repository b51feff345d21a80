"""MARS and AdamW beside it: their learning rates, decays and masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.papers.matrix.test_mars import sizes


def test_a_schedule_scales_both_rates() -> None:
    table = jnp.array([0.1, 0.2, 0.05])
    rest = {"learning_rate_1d": 0.02, "weight_decay_1d": 0.0}
    np.testing.assert_allclose(sizes(zoo.mars(0.1, **rest)), [0.02] * 3, rtol=1e-5)
    np.testing.assert_allclose(sizes(zoo.mars(lambda i: table[i], **rest)), [0.01, 0.02, 0.005], rtol=1e-5)
    np.testing.assert_allclose(
        sizes(zoo.mars(lambda i: table[i], base_learning_rate=0.1, **rest)), [0.02, 0.04, 0.01], rtol=1e-5
    )
    np.testing.assert_allclose(sizes(zoo.mars(0.1, base_learning_rate=0.2, **rest)), [0.01] * 3, rtol=1e-5)


@pytest.mark.parametrize("warmup", [3, 1000, 90_000])
def test_the_peak_of_a_warmup_is_the_rate_that_the_other_one_belongs_to(warmup: int) -> None:
    def schedule(step: Any) -> jax.Array:
        t = jnp.asarray(step).astype(jnp.float32) / warmup
        return 0.1 * jnp.where(t < 1, t, 1 / jnp.maximum(t, 1))

    tx = zoo.mars(lambda step: schedule(step + warmup), learning_rate_1d=0.02, weight_decay_1d=0.0)
    assert sizes(tx, 1) == pytest.approx(0.02)
    tx = zoo.mars(schedule, learning_rate_1d=0.02, weight_decay_1d=0.0)
    np.testing.assert_allclose(sizes(tx, 3), np.arange(3) / warmup * 0.02, rtol=0.021, atol=1e-9)


def test_a_schedule_of_the_other_rate_is_taken_as_it_is() -> None:
    table = jnp.array([0.1, 0.2, 0.05])
    tx = zoo.mars(lambda i: 0.0 * table[i], learning_rate_1d=lambda i: table[i], weight_decay_1d=0.0)
    np.testing.assert_allclose(sizes(tx), table, rtol=1e-5)


def test_each_group_has_its_decay_and_both_its_mask() -> None:
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2), "spared": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}
    mask = {"w": True, "b": True, "spared": False}
    tx = zoo.mars(0.1, weight_decay=0.3, learning_rate_1d=0.2, weight_decay_1d=0.5, mask=mask)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.03, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-6)
    assert all(not u.any() for u in jax.tree.leaves(updates["spared"]))
