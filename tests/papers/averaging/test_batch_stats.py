"""Batch statistics measured anew: those of the data, and what they repair."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import optax_zoo as zoo
from tests.laws.harness import default_promotion

DATA = np.random.default_rng(0).normal(loc=2.0, scale=3.0, size=(70, 4)).astype(np.float32)
BATCHES = np.split(DATA, [32, 64])


@pytest.fixture(autouse=True)
def promotion() -> Any:
    with default_promotion():
        yield


class Linen(linen.Module):
    """Two layers with batch normalisation behind each, the second frozen on demand."""

    momentum: float = 0.9
    dropout: float = 0.0
    frozen: bool = False

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = linen.BatchNorm(momentum=self.momentum, name="first")(linen.Dense(3, name="in")(x), not train)
        x = linen.Dropout(self.dropout, deterministic=not train)(linen.relu(x))
        x = linen.Dense(2, name="out")(x)
        return linen.BatchNorm(use_running_average=self.frozen or not train, momentum=0.999, name="second")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, dropout: float = 0.0, frozen: bool = False) -> None:
        self.into, self.out = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.first, self.second = nnx.BatchNorm(3, momentum=0.9, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)
        self.drop, self.frozen = nnx.Dropout(dropout, rngs=rngs), frozen

    def __call__(self, x: Any) -> Any:
        x = self.drop(nnx.relu(self.first(self.into(x))))
        return self.second(self.out(x), use_running_average=True if self.frozen else None)


def train(model: Any, batch: Any) -> Any:
    return model(batch, train=True)


def linen_statistics(batches: Any, frozen: bool = False) -> tuple[Any, Any, Any]:
    """Weights (kernel, bias) of both layers, statistics of both, before and after."""
    model = Linen(frozen=frozen)
    variables = model.init(jax.random.key(0), DATA, train=True)
    assert np.all(variables["batch_stats"]["first"]["mean"] == 0)
    new = zoo.recompute_batch_stats(model, batches, variables, forward=train)
    jax.tree.map(np.testing.assert_array_equal, new["params"], variables["params"])
    weights = [(variables["params"][name]["kernel"], variables["params"][name]["bias"]) for name in ("in", "out")]
    old, measured = ([tree["batch_stats"][name] for name in ("first", "second")] for tree in (variables, new))
    return weights, old, measured


def nnx_statistics(batches: Any, frozen: bool = False) -> tuple[Any, Any, Any]:
    model = Nnx(nnx.Rngs(0), frozen=frozen)
    model.eval()
    before = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    new = zoo.recompute_batch_stats(model, batches)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)), before)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(new, nnx.Param), nnx.state(model, nnx.Param))
    assert (new.first.momentum, new.second.momentum, new.first.use_running_average) == (0.9, 0.99, True)
    weights = [(layer.kernel[...], layer.bias[...]) for layer in (model.into, model.out)]
    old, measured = (
        [{"mean": layer.mean[...], "var": layer.var[...]} for layer in (tree.first, tree.second)]
        for tree in (model, new)
    )
    return weights, old, measured


FRAMEWORKS = pytest.mark.parametrize("measure", [linen_statistics, nnx_statistics])


def by_hand(weights: Any, batches: Any) -> list[dict[str, np.ndarray]]:
    """Means over all examples, and variances within batches averaged over examples, of both layers, in float64."""
    (w1, b1), (w2, b2) = (tuple(np.asarray(x, np.float64) for x in pair) for pair in weights)
    sums: list[list[Any]] = [[0.0, 0.0], [0.0, 0.0]]
    for batch in batches:
        first = batch @ w1 + b1
        hidden = np.maximum((first - first.mean(axis=0)) / np.sqrt(first.var(axis=0) + 1e-5), 0)
        for total, x in zip(sums, (first, hidden @ w2 + b2), strict=True):
            total[0] = total[0] + len(batch) * x.mean(axis=0)
            total[1] = total[1] + len(batch) * x.var(axis=0)
    n = sum(map(len, batches))
    return [{"mean": mean / n, "var": var / n} for mean, var in sums]


def assert_close(ours: Any, expected: Any) -> None:
    for a, b in zip(ours, expected, strict=True):
        for name in ("mean", "var"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


@FRAMEWORKS
@pytest.mark.parametrize("batches", [[DATA], BATCHES], ids=["at once", "in batches"])
def test_the_statistics_of_all_data(measure: Callable[..., Any], batches: Any) -> None:
    weights, _, measured = measure(batches)
    assert_close(measured, by_hand(weights, batches))


@FRAMEWORKS
def test_the_mean_in_batches_is_the_mean_of_the_whole_data_set(measure: Callable[..., Any]) -> None:
    (w, b), _ = measure(BATCHES)[0]
    measured = measure(iter(BATCHES))[2][0]
    np.testing.assert_allclose(measured["mean"], (DATA @ w + b).mean(axis=0), rtol=1e-5)


@FRAMEWORKS
def test_layers_on_stored_statistics_keep_them(measure: Callable[..., Any]) -> None:
    weights, old, measured = measure(BATCHES, frozen=True)
    jax.tree.map(np.testing.assert_array_equal, measured[1], old[1])
    assert_close(measured[:1], by_hand(weights, BATCHES)[:1])


def test_broken_statistics_are_forgotten() -> None:
    model = Linen()
    variables = model.init(jax.random.key(0), DATA, train=True)
    broken = {**variables, "batch_stats": jax.tree.map(lambda x: x * jnp.nan, variables["batch_stats"])}
    ours, expected = (zoo.recompute_batch_stats(model, BATCHES, v, forward=train) for v in (broken, variables))
    jax.tree.map(np.testing.assert_array_equal, ours["batch_stats"], expected["batch_stats"])
    module = Nnx(nnx.Rngs(0))
    module.first.mean[...] = jnp.full(3, jnp.nan)
    assert np.isfinite(zoo.recompute_batch_stats(module, BATCHES).first.mean[...]).all()


class Spectral(linen.Module):
    """A layer whose "batch_stats" are no statistics: the direction of the largest singular value."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.SpectralNorm(linen.Dense(3))(x, update_stats=False)
        return linen.BatchNorm(use_running_average=False)(x)


def test_other_variables_among_the_statistics_stay() -> None:
    model = Spectral()
    variables = model.init(jax.random.key(0), DATA)
    new = zoo.recompute_batch_stats(model, [DATA], variables)
    old, measured = (dict(tree["batch_stats"]) for tree in (variables, new))
    statistics = measured.pop("BatchNorm_0")
    jax.tree.map(np.testing.assert_array_equal, measured, {k: v for k, v in old.items() if k != "BatchNorm_0"})
    assert np.isfinite(statistics["mean"]).all() and np.all(statistics["var"] > 0)


def test_batches_may_be_trees() -> None:
    model = Linen()
    variables = model.init(jax.random.key(0), DATA, train=True)
    batches = [{"x": x, "label": np.zeros(len(x), np.int32)} for x in BATCHES]
    ours = zoo.recompute_batch_stats(model, batches, variables, forward=lambda m, batch: m(batch["x"], train=True))
    expected = zoo.recompute_batch_stats(model, BATCHES, variables, forward=train)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_dropout_draws_anew_for_each_batch() -> None:
    model = Linen(dropout=0.5)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = model.init(keys, DATA, train=True)

    def means(batches: Any) -> Any:
        rngs = {"dropout": jax.random.key(2)}
        new = zoo.recompute_batch_stats(model, batches, variables, forward=train, rngs=rngs)
        return new["batch_stats"]["second"]["mean"]

    once, twice = means([DATA]), means([DATA, DATA])
    assert not np.allclose(once, twice)
    np.testing.assert_array_equal(once, means([DATA]))
    module = Nnx(nnx.Rngs(0), dropout=0.5)
    once, twice = (zoo.recompute_batch_stats(module, [DATA] * k).second.mean[...] for k in (1, 2))
    assert not np.allclose(once, twice)


def test_recomputed_statistics_repair_an_averaged_model() -> None:
    """The mean of the weights of a run makes something else of the data than the weights whose statistics it has."""
    targets = np.tanh(DATA @ np.asarray([[1, -1], [0.5, 2], [-1, 1], [0.3, 0.1]], np.float32) / 3)
    model = Linen()
    variables = model.init(jax.random.key(0), DATA, train=True)
    tx = zoo.with_polyak(optax.sgd(0.5))

    def loss(params: Any, stats: Any) -> Any:
        out, new = model.apply({"params": params, "batch_stats": stats}, DATA, train=True, mutable=["batch_stats"])
        return jnp.mean((out - targets) ** 2), new["batch_stats"]

    @jax.jit
    def step(params: Any, stats: Any, state: Any) -> Any:
        grads, stats = jax.grad(loss, has_aux=True)(params, stats)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state

    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    for _ in range(60):
        params, stats, state = step(params, stats, state)
    averaged = {"params": zoo.eval_params(state, params), "batch_stats": stats}
    repaired = zoo.recompute_batch_stats(model, BATCHES, averaged, forward=train)

    def evaluated(variables: Any) -> float:
        return float(np.mean((model.apply(variables, DATA, train=False) - targets) ** 2))

    assert evaluated(repaired) < 0.7 * evaluated(averaged)


def test_what_cannot_be_is_refused() -> None:
    model = Linen()
    variables = model.init(jax.random.key(0), DATA, train=True)
    with pytest.raises(ValueError, match="recompute_batch_stats: no BatchNorm ran in train mode"):
        zoo.recompute_batch_stats(model, BATCHES, variables, forward=lambda m, batch: m(batch, train=False))
    with pytest.raises(ValueError, match="recompute_batch_stats: no BatchNorm ran in train mode"):
        zoo.recompute_batch_stats(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), BATCHES)
    with pytest.raises(ValueError, match="a linen model needs variables with 'batch_stats' in them"):
        zoo.recompute_batch_stats(model, BATCHES, {"params": variables["params"]}, forward=train)
    with pytest.raises(ValueError, match="recompute_batch_stats: there is no batch"):
        zoo.recompute_batch_stats(model, [], variables, forward=train)
    with pytest.raises(ValueError, match=r"batch 0 has first axes \[0\]"):
        zoo.recompute_batch_stats(model, [DATA[:0]], variables, forward=train)
    with pytest.raises(ValueError, match=r"batch 0 has first axes \[60, 70\]"):
        zoo.recompute_batch_stats(model, [(DATA, DATA[:60])], variables, forward=train)
    with pytest.raises(TypeError, match=r"model must be a flax\.linen\.Module or a flax\.nnx\.Module, got 3"):
        zoo.recompute_batch_stats(3, BATCHES)
