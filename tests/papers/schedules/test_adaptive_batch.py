"""Batch sizes from the variance of the gradient: the authors' values, data parallelism, the host's side."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo

GOLDEN = Path(__file__).parents[2] / "golden" / "adaptive_batch.basic.npz"
TESTS = {
    "norm_test": (zoo.norm_test, "eta", {}),
    "inner_product_test": (zoo.inner_product_test, "theta", {}),
    "inner_product_test_perleaf": (zoo.inner_product_test, "theta", {"per_leaf": True}),
    "orthogonality_test": (zoo.orthogonality_test, "nu", {}),
    "orthogonality_test_perleaf": (zoo.orthogonality_test, "nu", {"per_leaf": True}),
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    grads = {"w": arrays["in/w"], "b": arrays["in/b"]}
    return {**arrays, "grads": grads, **json.loads(str(arrays["meta"]))["call"]}


@pytest.mark.parametrize("key", TESTS)
def test_the_tests_are_the_authors(recorded: dict[str, Any], key: str) -> None:
    test, tolerance, more = TESTS[key]
    with jax.enable_x64(True):
        found = jax.jit(lambda grads: test(grads, recorded[tolerance], **more))(recorded["grads"])
    np.testing.assert_allclose(np.stack(found), recorded[f"out/{key}"], rtol=1e-9)


@pytest.mark.parametrize("key", TESTS)
def test_a_batch_split_over_devices_is_one_batch(recorded: dict[str, Any], key: str) -> None:
    test, tolerance, more = TESTS[key]
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), recorded["grads"])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    inside = jax.shard_map(
        lambda g: test(g, recorded[tolerance], axis_name="data", **more),
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec(),
    )
    np.testing.assert_allclose(np.stack(jax.jit(inside)(grads)), recorded[f"out/{key}"], rtol=1e-5)


def test_equal_gradients_ask_for_no_more_and_pure_noise_for_all() -> None:
    equal = {"w": jnp.ones((4, 3))}
    assert zoo.next_batch_size(zoo.norm_test(equal, 0.1), 4, 64) == 4
    opposite = {"w": jnp.asarray([[1.0], [-1.0]])}
    assert zoo.next_batch_size(zoo.norm_test(opposite, 0.1), 2, 64) == 64


def test_the_batch_grows_as_the_gradient_vanishes() -> None:
    noise = jax.random.normal(jax.random.key(0), (16, 5))
    sizes = [zoo.next_batch_size(zoo.norm_test({"w": noise + mean}, 0.5), 16, 10**6) for mean in (8.0, 0.3, 0.1)]
    assert 16 == sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("test", ["norm", "inner_product", "augmented"])
def test_the_state_keeps_the_last_test(recorded: dict[str, Any], test: Any) -> None:
    tolerances = {name: recorded[name] for name in ("eta", "theta", "nu")}
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), recorded["grads"])
    mean = jax.tree.map(lambda g: g.mean(0), grads)
    tx = optax.chain(zoo.adaptive_batch(test, **tolerances), optax.adagrad(0.1))
    state = tx.init(mean)
    _, state = jax.jit(tx.update)(mean, state, mean, per_example_grads=grads)
    _, state = jax.jit(tx.update)(mean, state, mean)
    expected = {
        "norm": recorded["out/norm_test"][0],
        "inner_product": recorded["out/inner_product_test"][0],
        "augmented": max(recorded["out/inner_product_test"][0], recorded["out/orthogonality_test"][0]),
    }[test]
    assert zoo.next_batch_size(state, 16, 10**9) == expected
    assert optax.tree.get(state, "squared_norm") > 0 and state[0].count == 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 examples, got shapes"):
        zoo.norm_test({"w": jnp.ones((1, 3))}, 0.1)
    with pytest.raises(ValueError, match="at least 2 examples, got shapes"):
        zoo.norm_test({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, 0.1)
    with pytest.raises(ValueError, match=r"norm_test: eta must be in \(0, inf\), got 0"):
        zoo.norm_test({"w": jnp.ones((2, 3))}, 0)
    with pytest.raises(ValueError, match="adaptive_batch: test must be one of 'norm'"):
        zoo.create("adaptive_batch", "gradient")
    found = zoo.norm_test({"w": jnp.ones((4, 3))}, 0.1)
    with pytest.raises(ValueError, match=r"next_batch_size: max_batch must be in \[8, inf\), got 4"):
        zoo.next_batch_size(found, 8, 4)
    with pytest.raises(ValueError, match="next_batch_size: there is no test here"):
        zoo.next_batch_size(optax.sgd(0.1).init(jnp.zeros(1)), 8, 16)
    with pytest.raises(ValueError, match="next_batch_size: the gradients of the tested batch were not finite"):
        zoo.next_batch_size(found._replace(next_batch=jnp.float32(jnp.nan)), 8, 16)
