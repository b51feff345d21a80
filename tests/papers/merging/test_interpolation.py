"""Lines between two networks: endpoints, chosen layers, barriers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo

A = {"conv": {"kernel": jnp.asarray([1.0, 2.0]), "bias": jnp.asarray(0.0)}, "head": jnp.asarray([3.0]), "steps": 1}
B = {"conv": {"kernel": jnp.asarray([5.0, 4.0]), "bias": jnp.asarray(1.0)}, "head": jnp.asarray([7.0]), "steps": 2}


def assert_tree(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_the_ends_are_the_trees() -> None:
    assert_tree(zoo.interpolate(A, B, 0.0), A)
    assert_tree(zoo.interpolate(A, B, 1.0), {**B, "steps": 1})
    quarter = {"conv": {"kernel": [2.0, 2.5], "bias": 0.25}, "head": [4.0], "steps": 1}
    assert_tree(zoo.interpolate(A, B, 0.25), jax.tree.map(jnp.asarray, quarter, is_leaf=lambda x: isinstance(x, list)))
    beyond = jax.jit(zoo.interpolate)(A, B, jnp.asarray(2.0))
    np.testing.assert_allclose(beyond["head"], [11.0])


@pytest.mark.parametrize(
    "layers",
    [
        {"conv": True, "head": False, "steps": False},
        lambda path, leaf: path.startswith("conv/"),
        lambda tree: {"conv": True, "head": False, "steps": False},
    ],
)
def test_chosen_layers_move_and_the_others_come_from_one_side(layers: Any) -> None:
    middle = zoo.interpolate(A, B, 0.5)["conv"]
    assert_tree(zoo.layerwise_interpolate(A, B, 0.5, layers), {**A, "conv": middle})
    assert_tree(zoo.layerwise_interpolate(A, B, 0.5, layers, "b"), {**B, "conv": middle})
    assert_tree(jax.jit(lambda a, b: zoo.layerwise_interpolate(a, b, 0.5, layers))(A, B), {**A, "conv": middle})


def test_all_or_no_layers() -> None:
    assert_tree(zoo.layerwise_interpolate(A, B, 0.3, True), zoo.interpolate(A, B, 0.3))
    assert_tree(zoo.layerwise_interpolate(A, B, 0.3, False, "b"), B)


def test_the_curve_and_its_barrier_by_hand() -> None:
    def loss(w: jax.Array) -> jax.Array:
        return w[0] ** 2 * (2 - w[0]) ** 2 + w[0]

    a, b = jnp.asarray([0.0]), jnp.asarray([2.0])
    at, losses = zoo.lmc_curve(loss, a, b, 5)
    np.testing.assert_allclose(at, [0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(losses, [0, 0.5625 + 0.5, 2.0, 0.5625 + 1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(zoo.lmc_barrier(loss, a, b), 2.0 - 1.0, rtol=1e-6)
    np.testing.assert_allclose(zoo.lmc_barrier(loss, a, b, 5), 2.0625 - 1.0, rtol=1e-6)
    np.testing.assert_allclose(zoo.lmc_barrier(loss, a, b, 5, baseline="linear"), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda a, b: zoo.lmc_barrier(loss, a, b, 5))(a, b), 1.0625, rtol=1e-6)


def test_the_ends_of_a_layerwise_barrier_are_the_whole_networks() -> None:
    def loss(w: Any) -> jax.Array:
        return w["x"] * w["y"]

    a, b = {"x": jnp.asarray(1.0), "y": jnp.asarray(2.0)}, {"x": jnp.asarray(3.0), "y": jnp.asarray(10.0)}
    layers = {"x": True, "y": False}
    np.testing.assert_allclose(zoo.lmc_barrier(loss, a, b, layers=layers), 2 * 2 - (2 + 30) / 2)
    np.testing.assert_allclose(zoo.lmc_barrier(loss, a, b, layers=layers, default="b"), 2 * 10 - (2 + 30) / 2)


def test_a_convex_loss_has_no_barrier() -> None:
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((30, 4), (30,)))
    for _ in range(5):
        a, b = (jnp.asarray(rng.normal(size=4), jnp.float32) for _ in range(2))
        assert zoo.lmc_barrier(lambda w: jnp.mean((x @ w - y) ** 2), a, b, 11, baseline="linear") <= 0


def test_a_deep_linear_network_is_convex_in_each_layer_and_not_in_all() -> None:
    """The paper's minimal example: a layer's cut of the loss has no barrier, the line between two minima has one."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    a = {f"w{i}": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32) for i in range(3)}
    y = x @ a["w0"] @ a["w1"] @ a["w2"]
    b = {"w0": -a["w0"], "w1": -a["w1"], "w2": a["w2"]}

    def loss(w: Any) -> jax.Array:
        return jnp.mean((x @ w["w0"] @ w["w1"] @ w["w2"] - y) ** 2)

    assert loss(b) < 1e-6
    assert zoo.lmc_barrier(loss, a, b) > 0.1
    for layer in a:
        _, losses = zoo.lmc_curve(loss, a, b, 9, layers={name: name == layer for name in a})
        assert jnp.all(jnp.diff(losses, n=2) >= -1e-4)
    _, losses = zoo.lmc_curve(loss, a, b, 9)
    assert jnp.any(jnp.diff(losses, n=2) < -1e-2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lmc_barrier: num must be in \[3, inf\), got 2"):
        zoo.lmc_barrier(lambda w: 0.0, A, B, 2)
    with pytest.raises(ValueError, match=r"lmc_curve: num must be in \[2, inf\), got 1"):
        zoo.lmc_curve(lambda w: 0.0, A, B, 1)
    with pytest.raises(ValueError, match="lmc_barrier: baseline must be one of 'mean', 'linear', got 'max'"):
        zoo.lmc_barrier(lambda w: 0.0, A, B, baseline="max")
    with pytest.raises(ValueError, match="layerwise_interpolate: default must be one of 'a', 'b', got 'c'"):
        zoo.layerwise_interpolate(A, B, 0.5, True, "c")
    with pytest.raises(ValueError, match=r"layerwise_interpolate: layers has no entry for the leaf at \['head'\]"):
        zoo.layerwise_interpolate(A, B, 0.5, {"conv": True})
    with pytest.raises(ValueError, match=r"interpolate: at \['head'\] a has shape \(1,\) and b has shape \(2,\)"):
        zoo.interpolate(A, {**B, "head": jnp.ones(2)}, 0.5)
    with pytest.raises(ValueError, match=r"interpolate: alpha must be in \(-inf, inf\), got nan"):
        zoo.interpolate(A, B, float("nan"))
