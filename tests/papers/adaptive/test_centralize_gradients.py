"""Gradient centralization: means, layouts, sharded leaves, and what the paper proves of weights and responses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo

TREE = {
    "conv": np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float32),
    "dense": np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32),
    "bias": np.random.default_rng(2).normal(size=4).astype(np.float32),
    "scale": np.float32(0.5),
}


def centralized(tree: Any, **settings: Any) -> Any:
    tx = zoo.centralize_gradients(**settings)
    return tx.update(tree, tx.init(tree))[0]


def test_every_output_channel_loses_its_mean_and_vectors_keep_theirs() -> None:
    out = centralized(TREE)
    np.testing.assert_allclose(out["conv"], TREE["conv"] - TREE["conv"].mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["dense"], TREE["dense"] - TREE["dense"].mean(0), rtol=1e-5, atol=1e-6)
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(out[name], TREE[name])
    twice = centralized(out)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), twice, out)


def test_channels_first_is_optax() -> None:
    theirs, _ = optax.centralize().update(jax.tree.map(jnp.asarray, TREE), optax.EmptyState())
    ours = centralized(TREE, channel_axis=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_the_channel_axis_may_differ_between_leaves() -> None:
    out = centralized(TREE, channel_axis=lambda path, leaf: {"conv": 2, "dense": None}.get(path))
    expected = TREE["conv"] - TREE["conv"].mean((0, 1, 3), keepdims=True)
    np.testing.assert_allclose(out["conv"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["dense"], TREE["dense"])


def test_means_of_half_precision_and_complex_gradients() -> None:
    half = np.full((4096, 2), 30.0, np.float16) + np.arange(2, dtype=np.float16)
    np.testing.assert_array_equal(centralized(half), 0 * half)
    turned = centralized(TREE["dense"] * np.complex64(1j))
    np.testing.assert_allclose(turned, 1j * np.asarray(centralized(TREE["dense"])), rtol=1e-5, atol=1e-6)


def test_inside_shard_map_whichever_axis_is_cut() -> None:
    specs = {
        "rows": PartitionSpec("x"),
        "columns": PartitionSpec(None, "y"),
        "both": PartitionSpec("y", "x"),
        "one": PartitionSpec(("x", "y")),
    }
    g = dict.fromkeys(specs, np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    tx = zoo.centralize_gradients()
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    blocks = jax.shard_map(
        lambda g: tx.update(g, tx.init(g), param_specs=specs)[0], mesh=mesh, in_specs=(specs,), out_specs=specs
    )
    expected = centralized(g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.jit(blocks)(g), expected)

    bare = jax.shard_map(
        lambda g: tx.update(g, tx.init(g))[0], mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x")
    )
    with pytest.raises(ValueError, match=r"centralize_gradients: a leaf of shape \(2, 4\) is one device's block"):
        bare(g["rows"])


def trained(tx: optax.GradientTransformation) -> tuple[jax.Array, jax.Array]:
    """A linear layer before and after SGD on inputs with a large common mean."""
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    inputs = jnp.asarray(3 + rng.normal(size=(50, 16, 6)), jnp.float32)

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(x @ (w - target)))

    def step(carry: Any, x: jax.Array) -> Any:
        w, state = carry
        u, state = tx.update(jax.grad(loss)(w, x), state, w)
        return (w + u, state), None

    return start, jax.lax.scan(step, (start, tx.init(start)), inputs)[0][0]


def test_a_constant_added_to_the_input_moves_the_output_as_at_the_start() -> None:
    start, end = trained(optax.chain(zoo.centralize_gradients(), optax.sgd(0.02, momentum=0.9)))
    ones = jnp.ones(6)
    assert jnp.linalg.norm(end - start) > 0.5
    np.testing.assert_allclose(ones @ end, ones @ start, rtol=1e-4, atol=1e-5)
    start, end = trained(optax.sgd(0.02, momentum=0.9))
    assert jnp.linalg.norm(ones @ end - ones @ start) > 0.5


def test_gradients_shrink_and_stay_directions_of_descent() -> None:
    g, out = TREE["dense"], np.asarray(centralized(TREE["dense"]))
    assert np.linalg.norm(out) < np.linalg.norm(g)
    np.testing.assert_allclose(np.sum(g * out), np.sum(out * out), rtol=1e-5)
