"""Fisher merging: the information, and that it tells whose weight to keep."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.papers.merging.recorded import Recorded

RECORDED = Recorded("fisher_merge.basic")


@pytest.mark.parametrize("variant", RECORDED.meta["extra"]["variants"])
def test_the_authors_values(variant: str) -> None:
    models, fishers = RECORDED.tree("in/models/"), RECORDED.tree("in/fishers/")
    kwargs = {**RECORDED.meta["call"], **RECORDED.meta["extra"]["variants"][variant]}
    with jax.enable_x64(True):
        RECORDED.assert_equal(zoo.fisher_merge(models, fishers, **kwargs), f"out/{variant}/")


def test_equal_fishers_give_the_weighted_mean() -> None:
    models = RECORDED.tree("in/models/")
    fishers = {name: np.ones_like(x) for name, x in models.items()}
    with jax.enable_x64(True):
        merged, mean = zoo.fisher_merge(models, fishers, [3, 1, 0]), zoo.uniform_soup(models, [3, 1, 0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), merged, mean)


def test_the_merge_lies_between_the_models() -> None:
    models = RECORDED.tree("in/models/")
    merged = zoo.fisher_merge(models, RECORDED.tree("in/fishers/"))
    for name, x in models.items():
        assert np.all(merged[name] >= x.min(axis=0) - 1e-6) and np.all(merged[name] <= x.max(axis=0) + 1e-6)


def test_where_the_donors_know_nothing_the_target_stays() -> None:
    models = [jnp.asarray([1.0, 1.0, 1.0]), jnp.asarray([5.0, 5.0, 5.0])]
    fishers = [jnp.asarray([0.0, 0.0, 1.0]), jnp.asarray([1.0, 0.0, 0.0])]
    np.testing.assert_allclose(zoo.fisher_merge(models, fishers), [5.0, 1.0, 1.0], rtol=1e-5)
    without_floor = zoo.fisher_merge(models, fishers, fisher_floor=0.0)
    np.testing.assert_allclose(without_floor, [5.0, 1.0, 1.0], rtol=1e-5)
    of_all = zoo.fisher_merge(models, fishers, favor_target_model=False)
    np.testing.assert_allclose(of_all, [5.0, 3.0, 1.0], rtol=1e-5)


def linear(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"][None]


def small_net(seed: int = 0) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3), "unused": None, "steps": 7}
    return params, rng.normal(size=(12, 4))


def test_the_information_of_a_linear_classifier() -> None:
    """For logits W x + b it is p_y (1 - p_y) x_i^2, whatever the labels."""
    params, x = small_net()
    with jax.enable_x64(True):
        fisher = zoo.diagonal_fisher(linear, params, [x], 3)
        p = np.asarray(jax.nn.softmax(x @ params["w"] + params["b"]))
    np.testing.assert_allclose(fisher["b"], (p * (1 - p)).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fisher["w"], np.einsum("ni,ny->iy", x**2, p * (1 - p)) / len(x), rtol=1e-12)
    assert fisher["unused"] is None and np.asarray(fisher["steps"]) == 0


def test_batches_are_only_a_way_to_hand_over_examples() -> None:
    params, x = small_net()
    once = zoo.diagonal_fisher(linear, params, [x], 3)
    parts = zoo.diagonal_fisher(linear, params, iter([x[:1], x[1:8], x[8:]]), 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, once)
    traced = jax.jit(lambda x: zoo.diagonal_fisher(linear, params, [x], 3))(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), traced, once)


def test_narrow_weights_have_wide_information() -> None:
    params, x = small_net()
    params = {name: jnp.asarray(params[name], jnp.bfloat16) for name in "wb"}
    fisher = zoo.diagonal_fisher(linear, params, [jnp.asarray(x, jnp.bfloat16)], 3)
    assert fisher["w"].dtype == jnp.float32 and jnp.all(fisher["w"] > 0)


INPUTS, HIDDEN, CLASSES = 12, 16, 3


def mlp(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w1"] + params["b1"][None]) @ params["w2"]


def task(rng: np.random.Generator, own: slice) -> tuple[jax.Array, jax.Array]:
    """Points whose class depends on the inputs `own`; the others hardly vary."""
    x = 0.05 * rng.normal(size=(200, INPUTS))
    x[:, own] = rng.normal(size=(200, INPUTS // 2))
    labels = np.argmax(x[:, own] @ rng.normal(size=(INPUTS // 2, CLASSES)), axis=1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(labels)


@jax.jit
def nll(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(mlp(params, x))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


@jax.jit
def fine_tuned(params: Any, x: jax.Array, labels: jax.Array) -> Any:
    def step(params: Any, _: None) -> tuple[Any, None]:
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(nll)(params, x, labels)), None

    return jax.lax.scan(step, params, length=150)[0]


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_the_mean_of_the_weights_on_two_tasks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = [task(rng, slice(0, INPUTS // 2)), task(rng, slice(INPUTS // 2, INPUTS))]
    shapes = {"w1": (INPUTS, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, CLASSES)}
    start = {name: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    models = [fine_tuned(start, *data) for data in tasks]
    fishers = [zoo.diagonal_fisher(mlp, w, [x], CLASSES) for w, (x, _) in zip(models, tasks, strict=True)]

    def mean_loss(params: Any) -> float:
        return float(sum(nll(params, *data) for data in tasks) / 2)

    merged, mean = zoo.fisher_merge(models, fishers), zoo.uniform_soup(models)
    assert mean_loss(merged) < 0.8 * mean_loss(mean)
    assert mean_loss(merged) < min(map(mean_loss, models))


def test_what_cannot_be_is_refused() -> None:
    models = [jnp.ones(2), jnp.ones(2)]
    with pytest.raises(ValueError, match="fisher_merge: 2 models need as many fishers, got 1"):
        zoo.fisher_merge(models, models[:1])
    with pytest.raises(ValueError, match="fisher_merge: fisher 1 is zero everywhere, so it cannot be normalized"):
        zoo.fisher_merge(models, [jnp.ones(2), jnp.zeros(2)])
    with pytest.raises(ValueError, match=r"fisher_merge: fisher_floor must be in \[0, inf\), got -1"):
        zoo.fisher_merge(models, models, fisher_floor=-1)
    with pytest.raises(ValueError, match=r"fisher_merge: coefficients must be in \[0, inf\), got -2"):
        zoo.fisher_merge(models, models, [1, -2])
    with pytest.raises(ValueError, match="fisher_merge: coefficients must not all be 0"):
        zoo.fisher_merge(models, models, [0, 0])
    params, x = small_net()
    with pytest.raises(ValueError, match="diagonal_fisher: batches hold no examples"):
        zoo.diagonal_fisher(linear, params, [], 3)
    with pytest.raises(ValueError, match=r"logits of shape \(1, 5\) for one example, got \(1, 3\)"):
        zoo.diagonal_fisher(linear, params, [x], 5)


def test_eight_bit_fishers_are_normalized_in_float32() -> None:
    models = [{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}]
    fishers = [{"w": jnp.asarray(f, jnp.float8_e4m3fn)} for f in ([3.0, 4.0], [6.0, 8.0])]
    np.testing.assert_allclose(zoo.fisher_merge(models, fishers)["w"], 0.5, rtol=1e-6)
