"""Variance-corrected averaging: unrelated models keep their spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.papers.merging.recorded import Recorded

RECORDED = Recorded("variance_corrected_average.basic")
RNG = np.random.default_rng(0)
MODELS = [{"w": 0.3 + 0.5 * RNG.normal(size=(200, 50))} for _ in range(6)]
OWN = {"w": 0.1 + 2.0 * RNG.normal(size=(200, 50))}


@pytest.mark.parametrize("variant", RECORDED.meta["extra"]["variants"])
def test_the_authors_values(variant: str) -> None:
    kwargs = RECORDED.meta["extra"]["variants"][variant]
    models = RECORDED.tree("in/models/")
    with jax.enable_x64(True):
        RECORDED.assert_equal(zoo.variance_corrected_average(models, **kwargs), f"out/{variant}/")
        RECORDED.assert_equal(zoo.variance_corrected_average(models, ignore=True), "out/plain/")


def test_independent_models_keep_the_variance_that_their_mean_loses() -> None:
    with jax.enable_x64(True):
        mean, corrected = (np.asarray(f(MODELS)["w"]) for f in (zoo.uniform_soup, zoo.variance_corrected_average))
    np.testing.assert_allclose(np.var(mean), 0.25 / 6, rtol=0.05)
    np.testing.assert_allclose(np.var(corrected), 0.25, rtol=0.02)
    np.testing.assert_allclose(np.mean(corrected), np.mean(mean), rtol=1e-12)


def variance(x: np.ndarray) -> float:
    return np.var(np.asarray(x), ddof=1)


def test_targets_and_shares_by_hand() -> None:
    weights = [1.0, 2.0, 0.0, 1.0, 1.0, 3.0]
    of_models = np.average([variance(model["w"]) for model in MODELS], weights=weights)
    mean = np.average([model["w"] for model in MODELS], axis=0, weights=weights)
    kwargs = {"weights": weights, "self_params": OWN, "conservative": 0.25, "eps": 0.0}
    average = 0.25 * OWN["w"] + 0.75 * mean
    wanted = {"others": of_models, "self": variance(OWN["w"])}
    wanted["mix"] = 0.25 * wanted["self"] + 0.75 * wanted["others"]
    with jax.enable_x64(True):
        for target, target_variance in wanted.items():
            merged = zoo.variance_corrected_average(MODELS, target=target, **kwargs)["w"]
            stretch = np.sqrt(target_variance / variance(average))
            np.testing.assert_allclose(merged, (average - average.mean()) * stretch + average.mean(), rtol=1e-10)


def test_models_that_agree_are_kept() -> None:
    with jax.enable_x64(True):
        merged = zoo.variance_corrected_average([MODELS[0]] * 3, eps=0.0)
    np.testing.assert_allclose(merged["w"], MODELS[0]["w"], rtol=1e-12, atol=1e-15)


def test_single_entries_constants_and_normalisation_layers_are_only_averaged() -> None:
    def model(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        names = ("dense/kernel", "LayerNorm_0/scale", "bn1.weight", "batch_stats/mean", "layers.0.running_var")
        leaves = {name: rng.normal(size=40) for name in names}
        return {**leaves, "gain": rng.normal(), "one": rng.normal(size=1), "constant": np.full(5, float(seed))}

    models = [model(seed) for seed in range(3)]
    with jax.enable_x64(True):
        merged = zoo.variance_corrected_average(models, eps=0.0)
        plain = zoo.uniform_soup(models)
        changed = {name for name in plain if not np.allclose(merged[name], plain[name], rtol=1e-12)}
        assert changed == {"dense/kernel"}
        chosen = zoo.variance_corrected_average(models, eps=0.0, ignore=lambda path, leaf: "dense" in path)
    changed = {name for name in plain if not np.allclose(chosen[name], plain[name], rtol=1e-12)}
    assert changed == {"LayerNorm_0/scale", "bn1.weight", "batch_stats/mean", "layers.0.running_var"}


def test_it_starts_a_network_where_its_initialisation_would() -> None:
    """Signals die out in the plain mean of ten random deep networks, and not in the corrected one."""

    def network(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, 8)
        return [jax.nn.initializers.he_normal()(key, (64, 64), jnp.float32) for key in keys]

    def size(layers: list[jax.Array]) -> float:
        x = jax.random.normal(jax.random.key(7), (32, 64))
        for w in layers:
            x = jax.nn.relu(x @ w)
        return float(jnp.sqrt(jnp.mean(x**2)))

    networks = [network(key) for key in jax.random.split(jax.random.key(0), 10)]
    usual = np.mean([size(layers) for layers in networks])
    assert size(zoo.uniform_soup(networks)) < 1e-3 * usual
    assert 0.5 * usual < size(zoo.variance_corrected_average(networks)) < 2 * usual


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"variance_corrected_average: target 'self', conservative 0.0 needs self_params"
    ):
        zoo.variance_corrected_average(MODELS, target="self")
    with pytest.raises(ValueError, match=r"target 'others', conservative 0.5 needs self_params"):
        zoo.variance_corrected_average(MODELS, conservative=0.5)
    with pytest.raises(
        ValueError, match="target must be one of 'others', 'self', 'mix', got 'mixed'; did you mean 'mix'"
    ):
        zoo.variance_corrected_average(MODELS, target="mixed")
    with pytest.raises(ValueError, match=r"variance_corrected_average: conservative must be in \[0, 1\], got 2"):
        zoo.variance_corrected_average(MODELS, conservative=2, self_params=OWN)
    with pytest.raises(ValueError, match=r"variance_corrected_average: eps must be in \[0, inf\), got -1"):
        zoo.variance_corrected_average(MODELS, eps=-1)
