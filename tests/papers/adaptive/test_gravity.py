"""Gravity: the squashing, the counter, and the first velocity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_zoo as zoo
from tests.support import problem, trajectory

PARAMS = {"w": jnp.zeros((80, 50)), "b": jnp.zeros(50)}


def first_velocity(tx: optax.GradientTransformation, params: Any = PARAMS) -> Any:
    return optax.tree.get(tx.init(params), "velocity")


def squashed(g: np.ndarray) -> np.ndarray:
    return g / (1 + (g * np.abs(g).max()) ** 2)


@pytest.mark.parametrize("first_step", [0, 1, 5])
def test_steps_written_out(first_step: int) -> None:
    params, gradients = problem(steps=5)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.gravity(0.1, alpha=0.0, beta=0.8, first_step=first_step), params, gradients)
    for leaf, p in params.items():
        velocity = np.zeros_like(p)
        for t in range(1, 6):
            tau = t - 1 + first_step
            keep = (0.8 * tau + 1) / (tau + 2)
            velocity = keep * velocity + (1 - keep) * squashed(gradients[leaf][t - 1])
            p = p - 0.1 * velocity
            np.testing.assert_allclose(ours[leaf][t - 1], p, rtol=1e-10)


@pytest.mark.parametrize("g", [0.1, 1.0, 10.0])
def test_a_scalar_leaf(g: float) -> None:
    tx = zoo.scale_by_gravity(beta=0.9)
    u, _ = tx.update(jnp.float32(g), tx.init(jnp.float32(0)))
    np.testing.assert_allclose(u, (1 - 1.9 / 3) * g / (1 + g**4), rtol=1e-5)


def test_entries_that_are_steep_for_their_leaf_move_less() -> None:
    """The paper's claim: of two entries the one with the larger gradient takes the smaller step once it is past m."""
    tx = zoo.scale_by_gravity()
    grads = jnp.array([0.01, 0.2, 2.0])
    u, _ = tx.update(grads, tx.init(grads))
    assert u[0] < u[2] < u[1]


def test_the_first_velocity_is_drawn_leaf_by_leaf() -> None:
    velocity = first_velocity(zoo.gravity(0.1, alpha=0.01))
    np.testing.assert_allclose(np.std(velocity["w"]), 0.1, rtol=0.05)
    np.testing.assert_allclose(np.mean(velocity["w"]), 0.0, atol=0.01)
    assert np.isin(velocity["b"], velocity["w"]).mean() < 0.1
    again, other = (first_velocity(zoo.gravity(0.1, seed=seed)) for seed in (0, 1))
    np.testing.assert_array_equal(velocity["w"], again["w"])
    assert np.isin(velocity["w"], other["w"]).mean() < 0.1
    scheduled = first_velocity(zoo.gravity(lambda count: 0.1 / (count + 1.0)))
    np.testing.assert_allclose(scheduled["w"], velocity["w"], rtol=1e-6)
    np.testing.assert_array_equal(first_velocity(zoo.gravity(alpha=0.0))["w"], 0.0)
    assert first_velocity(zoo.gravity(), {"h": jnp.zeros(3, jnp.bfloat16)})["h"].dtype == jnp.bfloat16


def test_the_first_velocity_is_not_weighed_by_beta() -> None:
    tx = zoo.scale_by_gravity(beta=0.9, init_std=1.0)
    state = tx.init(PARAMS)
    u, _ = tx.update(PARAMS, state)
    np.testing.assert_allclose(u["w"], state.velocity["w"] * 1.9 / 3, rtol=1e-6)


def test_the_first_velocity_over_devices() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    tx = zoo.scale_by_gravity(init_std=1.0)
    split = {"w": PartitionSpec("data"), "b": PartitionSpec()}
    placed = jax.device_put(PARAMS, jax.tree.map(lambda spec: NamedSharding(mesh, spec), split))
    alone = first_velocity(tx)
    for of_jit in (jax.jit(tx.init)(placed).velocity, tx.init(placed).velocity):
        assert of_jit["w"].sharding.is_equivalent_to(placed["w"].sharding, 2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), of_jit, alone)

    draw = jax.shard_map(lambda p: tx.init(p).velocity, mesh=mesh, in_specs=(split,), out_specs=split)
    blocks = jax.jit(draw)(placed)
    assert np.unique(blocks["w"]).size > 0.9 * blocks["w"].size
    np.testing.assert_allclose(np.std(blocks["w"]), 1.0, rtol=0.05)


def test_bad_input() -> None:
    warm_up = optax.linear_schedule(0.0, 0.1, 10)
    with pytest.raises(ValueError, match=r"gravity: learning_rate must be in \(0, inf\), got 0"):
        zoo.gravity(warm_up)
    zoo.gravity(warm_up, alpha=0.0)
    with pytest.raises(TypeError, match="gravity: alpha must be a number here, got the schedule"):
        zoo.gravity(alpha=warm_up)
    with pytest.raises(ValueError, match=r"gravity: first_step must be in \[0, inf\), got -1"):
        zoo.gravity(first_step=-1)
    with pytest.raises(ValueError, match=r"gravity: init_std must be in \[0, inf\), got -1"):
        zoo.scale_by_gravity(init_std=-1)
    with pytest.raises(TypeError, match=r"gravity: params at \['c'\] is complex"):
        zoo.gravity().init({"c": jnp.ones(2, jnp.complex64)})
