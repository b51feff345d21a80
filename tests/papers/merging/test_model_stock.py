"""Model Stock: the angle says how far to trust the mean."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.papers.merging.recorded import Recorded


def test_the_values_of_the_known_implementation() -> None:
    recorded = Recorded("model_stock.basic")
    base, models = recorded.tree("in/base/"), recorded.tree("in/models/")
    with jax.enable_x64(True):
        recorded.assert_equal(zoo.model_stock(base, models), "out/layerwise/")
        by_filter = zoo.model_stock(base, models, granularity="filter")
        recorded.assert_equal({"w": by_filter["w"]}, "out/filterwise/")
        np.testing.assert_allclose(by_filter["b"], recorded.arrays["out/layerwise/b"], rtol=1e-9)


def test_equal_models_are_kept_and_orthogonal_offsets_are_dropped() -> None:
    base = jnp.asarray([1.0, 2.0, 3.0])
    model = jnp.asarray([4.0, 1.0, 5.0])
    np.testing.assert_allclose(zoo.model_stock(base, [model] * 3), model, rtol=1e-6)
    offsets = 2.0 * jnp.eye(3)
    np.testing.assert_allclose(zoo.model_stock(base, base[None] + offsets), base, rtol=1e-6)


def test_two_models_at_sixty_degrees() -> None:
    base, models = jnp.zeros(2), [jnp.asarray([1.0, 0.0]), jnp.asarray([0.5, np.sqrt(0.75)])]
    np.testing.assert_allclose(zoo.model_stock(base, models), 2 / 3 * (models[0] + models[1]) / 2, rtol=1e-5)


def test_opposite_offsets_keep_the_base() -> None:
    base = jnp.asarray([1.0, 2.0])
    np.testing.assert_allclose(zoo.model_stock(base, [base + 1.0, base - 1.0]), base)


def test_each_filter_has_its_own_angle() -> None:
    rng = np.random.default_rng(0)
    base, models = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(3, 2, 2, 3, 4)) + 1.0
    with jax.enable_x64(True):
        merged = zoo.model_stock(base, models, granularity="filter")
        for unit in range(4):
            alone = zoo.model_stock(base[..., unit], models[..., unit])
            np.testing.assert_allclose(merged[..., unit], alone, rtol=1e-12)


def test_two_models_come_near_the_soup_of_many() -> None:
    """Noisy fine-tuning in many dimensions: the stock of two is as good as a soup of several, and nearer its centre."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(600, 200)), jnp.float32)
    optimum = rng.normal(size=200) / np.sqrt(200)
    y = jnp.asarray(x @ optimum, jnp.float32)
    base = jnp.asarray(optimum + 0.45 * rng.normal(size=200) / np.sqrt(200), jnp.float32)

    def excess(w: jax.Array) -> float:
        return float(jnp.mean((x @ w - y) ** 2))

    def fine_tuned(key: jax.Array) -> jax.Array:
        def step(w: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
            noise = jax.random.normal(key, w.shape)
            return w - 0.1 * (x.T @ (x @ w - y) / len(x) + 0.25 * noise), None

        return jax.lax.scan(step, base, jax.random.split(key, 60))[0]

    models = jax.jit(jax.vmap(fine_tuned))(jax.random.split(jax.random.key(0), 32))
    soup_of_many, two = zoo.uniform_soup(models), models[:2]
    stock, soup_of_two, soup_of_three = zoo.model_stock(base, two), zoo.uniform_soup(two), zoo.uniform_soup(models[:3])
    assert excess(stock) < 0.6 * excess(soup_of_two) and excess(stock) < excess(soup_of_three)
    assert jnp.linalg.norm(stock - soup_of_many) < 0.8 * jnp.linalg.norm(soup_of_two - soup_of_many)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="model_stock: needs at least two models"):
        zoo.model_stock(jnp.ones(2), [jnp.ones(2)])
    with pytest.raises(ValueError, match="model_stock: granularity must be one of 'leaf', 'filter', got 'row'"):
        zoo.model_stock(jnp.ones(2), [jnp.ones(2)] * 2, granularity="row")
