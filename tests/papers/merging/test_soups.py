"""Model soups and DiWA: which models are mixed, and that the mean is worth it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.papers.merging.recorded import Recorded

RECORDED = Recorded("model_soup.basic")
MODELS, TARGET = RECORDED.tree("in/models/"), RECORDED.tree("in/target/")


def score(tree: Any) -> float:
    return -sum(float(np.sum((np.asarray(tree[name]) - TARGET[name]) ** 2)) for name in TARGET)


def test_the_authors_soups() -> None:
    with jax.enable_x64(True):
        RECORDED.assert_equal(zoo.uniform_soup(MODELS), "out/uniform/")
        soup, selected = zoo.greedy_soup(MODELS, score)
        RECORDED.assert_equal(soup, "out/greedy/")
        assert selected == RECORDED.arrays["out/greedy_selected"].tolist()
        soup, selected = zoo.diwa(MODELS, score, "restricted")
        RECORDED.assert_equal(soup, "out/diwa_restricted/")
        assert selected == RECORDED.arrays["out/diwa_selected"].tolist()


def test_known_scores_are_not_asked_for_again() -> None:
    singles = [score(jax.tree.map(lambda x, i=i: x[i], MODELS)) for i in range(7)]
    asked = []

    def counting(tree: Any) -> float:
        asked.append(tree)
        return score(tree)

    assert zoo.greedy_soup(MODELS, counting, singles)[1] == zoo.greedy_soup(MODELS, score)[1]
    assert len(asked) == 6


def test_a_soup_scores_no_worse_than_the_best_model() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        models = rng.normal(size=(5, 3)).astype(np.float32)
        target = rng.normal(size=3)

        def near(x: Any, target: np.ndarray = target) -> float:
            return -float(np.sum((np.asarray(x) - target) ** 2))

        best = max(map(near, models))
        for soup, selected in (zoo.greedy_soup(models, near), zoo.diwa(models, near, "restricted")):
            assert near(soup) >= best
            np.testing.assert_allclose(soup, models[selected].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_greedy_wants_a_rise_and_diwa_no_fall() -> None:
    models = np.asarray([[1.0], [1.0], [1.0]], np.float32)
    assert zoo.greedy_soup(models, lambda x: -float(x[0]))[1] == [0]
    assert zoo.diwa(models, lambda x: -float(x[0]), "restricted")[1] == [0, 1, 2]
    assert zoo.diwa(models)[1] == [0, 1, 2]


def test_weights_count_by_their_ratios() -> None:
    models = [jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0])]
    np.testing.assert_allclose(zoo.uniform_soup(models, [3, 1]), [0.75, 0.25], rtol=1e-6)
    traced = jax.jit(zoo.uniform_soup)(models, jnp.asarray([0.0, 2.0]))
    np.testing.assert_allclose(traced, [0.0, 1.0])


def test_equal_models_are_their_mean() -> None:
    w = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_allclose(zoo.uniform_soup([w] * 7), w, rtol=2e-7)


def test_the_soup_of_noisy_runs_from_one_start_beats_each() -> None:
    """Runs that differ in the noise of their batches end around one minimum, and their mean inside of it."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 10)), jnp.float32)
    labels = jnp.asarray(x @ rng.normal(size=(10, 3)) + rng.normal(size=(256, 3)), jnp.float32).argmax(-1)

    def loss(w: jax.Array, index: Any = slice(None)) -> jax.Array:
        log_p = jax.nn.log_softmax(x[index] @ w)
        return -jnp.mean(jnp.take_along_axis(log_p, labels[index][:, None], axis=1))

    def run(key: jax.Array) -> jax.Array:
        def step(w: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            return w - 0.5 * jax.grad(loss)(w, jax.random.randint(key, (8,), 0, 256)), None

        return jax.lax.scan(step, jnp.zeros((10, 3)), jax.random.split(key, 300))[0]

    models = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 8))
    singles = [float(loss(w)) for w in models]
    assert loss(zoo.uniform_soup(models)) < min(singles)
    soup, selected = zoo.greedy_soup(models, lambda w: -loss(w))
    assert len(selected) > 2 and loss(soup) < min(singles)


def test_what_cannot_be_is_refused() -> None:
    models = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="diwa: selection must be one of 'uniform', 'restricted', got 'greedy'"):
        zoo.diwa(models, selection="greedy")
    with pytest.raises(ValueError, match="diwa: selection 'restricted' needs score_fn"):
        zoo.diwa(models, selection="restricted")
    with pytest.raises(ValueError, match=r"uniform_soup: weights must be 2 numbers, one for each model, got \[1\]"):
        zoo.uniform_soup(models, [1])
    with pytest.raises(ValueError, match=r"uniform_soup: weights must be in \[0, inf\), got -1"):
        zoo.uniform_soup(models, [2, -1])
    with pytest.raises(ValueError, match="uniform_soup: weights must not all be 0"):
        zoo.uniform_soup(models, [0, 0])
    with pytest.raises(ValueError, match="greedy_soup: score_fn of model 0 is NaN"):
        zoo.greedy_soup(models, lambda x: jnp.nan)
    with pytest.raises(ValueError, match=r"greedy_soup: scores must be in \[-inf, inf\], got nan"):
        zoo.greedy_soup(models, lambda x: 0.0, [1.0, float("nan")])
