"""Coordinate clipping against a sort of the whole tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo

TREE = {
    "a": np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32),
    "b": np.random.default_rng(1).normal(size=(9,)).astype(np.float32) * 10,
    "c": np.float32(0.0),
}
SORTED = np.sort(np.abs(np.concatenate([np.ravel(x) for x in TREE.values()])))[::-1]


def clip(tree: object, **settings: object) -> object:
    tx = zoo.clip_by_coordinate(**settings)
    return jax.jit(tx.update)(tree, tx.init(tree))[0]


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 1 / 3, 0.5, 0.99, 1.0])
def test_the_threshold_is_the_entry_of_the_sorted_magnitudes(fraction: float) -> None:
    out = clip(TREE, fraction=fraction)
    tau = np.append(SORTED, 0)[int(fraction * SORTED.size)]
    for name, x in TREE.items():
        np.testing.assert_array_equal(out[name], np.sign(x) * np.minimum(np.abs(x), tau))
    changed = sum(int(np.sum(np.asarray(out[name]) != x)) for name, x in TREE.items())
    assert changed <= int(fraction * SORTED.size)


def test_leaf_by_leaf_and_with_a_fixed_threshold() -> None:
    out = clip(TREE, fraction=0.5, per_leaf=True)
    for name, x in TREE.items():
        tau = np.sort(np.abs(np.ravel(x)))[::-1][int(0.5 * x.size)]
        np.testing.assert_array_equal(out[name], np.clip(x, -tau, tau))
    fixed = clip(TREE, max_value=0.25)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.clip(b, -0.25, 0.25)), fixed, TREE)


def test_mixed_dtypes_and_float64_share_one_threshold() -> None:
    with jax.enable_x64(True):
        tree = {"a": jnp.asarray(TREE["a"], jnp.float64), "b": jnp.asarray(TREE["b"], jnp.bfloat16)}
        out = clip(tree, fraction=0.2)
        sizes = np.sort(np.abs(np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in tree.values()])))[::-1]
        tau = sizes[int(0.2 * sizes.size)]
        np.testing.assert_array_equal(out["a"], np.clip(np.asarray(tree["a"]), -tau, tau))
        assert out["b"].dtype == jnp.bfloat16


def test_ties_infinities_and_subnormals() -> None:
    tree = {"x": jnp.array([jnp.inf, -2.0, 2.0, 2.0, 1e-42, -1e-42, 0.0, 1.0], jnp.float32)}
    np.testing.assert_array_equal(clip(tree, fraction=0.25)["x"][:4], [2.0, -2.0, 2.0, 2.0])


def test_a_traced_fraction_needs_no_retrace() -> None:
    run = jax.jit(lambda fraction: clip(TREE, fraction=fraction))
    for fraction in (0.1, 0.5):
        jax.tree.map(np.testing.assert_array_equal, run(fraction), clip(TREE, fraction=fraction))
    assert run._cache_size() == 1
