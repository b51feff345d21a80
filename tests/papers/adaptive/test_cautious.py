"""Cautious: the mask, what it is divided by, and that no step climbs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from tests.support import problem, trajectory


def steered(u: Any, g: Any, **arguments: Any) -> np.ndarray:
    """The update u of some inner method, made cautious by the gradient g."""
    fixed = optax.GradientTransformation(lambda p: optax.EmptyState(), lambda g, s, p=None: (u, s))
    tx = zoo.cautious(fixed, **arguments)
    return np.asarray(tx.update(g, tx.init(g))[0])


def test_entries_that_agree_share_the_length_of_all() -> None:
    u, g = jnp.array([1.0, -2.0, 3.0, 4.0]), jnp.array([0.5, -0.1, -1.0, 0.0])
    np.testing.assert_allclose(steered(u, g), [2.0, -4.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(steered(-u, g, direction="descent"), [-2.0, 4.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(steered(u, g, min_share=1.0), [1.0, -2.0, 0.0, 0.0], rtol=1e-6)


def test_nothing_moves_where_nothing_agrees() -> None:
    u = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(steered(u, -u), [0.0, 0.0])


def test_the_share_is_bounded_from_below() -> None:
    g = jnp.where(jnp.arange(10_000) == 7, 1.0, -1.0)
    assert steered(jnp.ones(10_000), g).max() == pytest.approx(1e3)
    assert steered(jnp.ones(10_000), g, min_share=1e-5).max() == pytest.approx(1e4)


def test_each_leaf_has_its_own_share() -> None:
    u, g = {"a": jnp.ones(4), "b": jnp.ones(2)}, {"a": jnp.array([1.0, -1.0, -1.0, -1.0]), "b": jnp.ones(2)}
    fixed = optax.GradientTransformation(lambda p: optax.EmptyState(), lambda g, s, p=None: (u, s))
    tx = zoo.cautious(fixed)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates["a"], [4.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(updates["b"], [1.0, 1.0])


def test_small_numbers_agree_too() -> None:
    u = jnp.array([1e-25, -1e-25])
    np.testing.assert_allclose(steered(u, u), u, rtol=1e-6)


def test_complex_entries_agree_within_a_right_angle() -> None:
    u = jnp.array([1.0 + 0.0j, 1.0j])
    np.testing.assert_allclose(steered(u, jnp.array([1.0 + 5.0j, 1.0 - 5.0j])), [2.0, 0.0])


def test_the_share_inside_shard_map_is_that_of_the_whole_leaf() -> None:
    g = jnp.arange(16.0) - 2.5
    fixed = optax.GradientTransformation(lambda p: optax.EmptyState(), lambda g, s, p=None: (jnp.ones_like(g), s))
    tx = zoo.cautious(fixed)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    sharded = jax.shard_map(lambda g: tx.update(g, tx.init(g))[0], mesh=mesh, in_specs=rows, out_specs=rows)
    np.testing.assert_allclose(jax.jit(sharded)(g), steered(jnp.ones(16), g), rtol=1e-6)


def test_no_step_is_uphill_of_its_own_batch() -> None:
    params, gradients = problem(steps=30)
    plain = optax.sgd(0.1, momentum=0.9)
    ours = zoo.cautious(plain, direction="descent")
    states, climbs = [plain.init(params), ours.init(params)], 0
    for i in range(30):
        g = jax.tree.map(lambda g, i=i: jnp.asarray(g[i], jnp.float32), gradients)
        with jax.numpy_dtype_promotion("standard"):
            theirs, states[0] = plain.update(g, states[0])
            updates, states[1] = ours.update(g, states[1])
        slopes = [float(optax.tree.vdot(tree, g)) for tree in (theirs, updates)]
        climbs += slopes[0] > 0
        assert slopes[1] <= 0
    assert climbs > 0


def test_momentum_no_longer_overshoots_in_a_narrow_valley() -> None:
    def valley(p: jax.Array) -> jax.Array:
        return 0.5 * (p[0] ** 2 + 0.05 * p[1] ** 2)

    def losses(tx: optax.GradientTransformation) -> np.ndarray:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            p, state = carry
            value, g = jax.value_and_grad(valley)(p)
            updates, state = tx.update(g, state, p)
            return (optax.apply_updates(p, updates), state), value

        p = jnp.array([1.0, 2.0])
        return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=200))(p)[1])

    plain = losses(optax.sgd(0.1, momentum=0.95))
    ours = losses(zoo.cautious(optax.sgd(0.1, momentum=0.95), direction="descent"))
    assert ours.mean() < 0.5 * plain.mean()
    assert ours[-1] < 1e-3 * plain[-1]
    assert np.sum(np.diff(ours) > 0) < 0.1 * np.sum(np.diff(plain) > 0)


def test_decay_behind_the_wrapper_is_not_masked() -> None:
    params, gradients = problem(steps=1)
    zero = jax.tree.map(np.zeros_like, gradients)
    parts = (zoo.cautious(optax.scale_by_adam()), optax.add_decayed_weights(0.5), optax.scale(-0.1))
    with jax.numpy_dtype_promotion("standard"):
        behind, _ = trajectory(optax.chain(*parts), params, zero)
        inside, _ = trajectory(zoo.cautious(optax.adamw(0.1, weight_decay=0.5), direction="descent"), params, zero)
    np.testing.assert_allclose(behind["w"][0], 0.95 * params["w"], rtol=1e-6)
    np.testing.assert_allclose(inside["w"][0], params["w"], rtol=1e-6)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^cautious: direction must be one of 'ascent', 'descent', got 'decent'"):
        zoo.cautious(optax.sgd(0.1), direction="decent")
    with pytest.raises(TypeError, match=r"^cautious: inner must be an optax.GradientTransformation, got 'adam'$"):
        zoo.cautious("adam")
    with pytest.raises(ValueError, match=r"^cautious: min_share must be in \(0, 1\], got 0$"):
        zoo.cautious(optax.sgd(0.1), min_share=0)
