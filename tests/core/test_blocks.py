"""A device's block inside shard_map: the whole leaf, sums over its axes, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from optax_zoo._core.blocks import Block

SPECS = [PartitionSpec("x"), PartitionSpec(None, "y"), PartitionSpec("x", "y"), PartitionSpec(("x", "y"))]


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def block(x: jax.Array, spec: PartitionSpec | None) -> Block:
    return Block.of(x, spec, "rule: the leaf", "it looks at all of it")


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_whole_is_assembled_on_every_device_and_cut_again(spec: PartitionSpec) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)

    def inside(mine: jax.Array) -> tuple[jax.Array, jax.Array]:
        where = block(mine, spec)
        whole = where.assemble(mine)
        return whole, where.of_whole(2 * whole)

    run = jax.shard_map(inside, mesh=mesh(), in_specs=spec, out_specs=(PartitionSpec(), spec))
    whole, doubled = jax.jit(run)(x)
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(doubled, 2 * x)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sums_and_maxima_are_those_of_the_whole(spec: PartitionSpec, axes: tuple[int, ...]) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
    kept = PartitionSpec(*(None if axis in axes else name for axis, name in enumerate((*spec, None)[:2])))

    def inside(mine: jax.Array) -> tuple[jax.Array, jax.Array]:
        where = block(mine, spec)
        return where.sum(mine, axes), where.largest(mine, axes)

    run = jax.shard_map(inside, mesh=mesh(), in_specs=spec, out_specs=kept)
    total, most = jax.jit(run)(x)
    np.testing.assert_allclose(total, x.sum(axes, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(most, jnp.maximum(x.max(axes, keepdims=True), 0))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_linear_function_sees_the_whole(spec: PartitionSpec) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
    rows = jnp.arange(24.0).reshape(3, 8)
    run = jax.shard_map(
        lambda mine: block(mine, spec).linear(lambda whole: rows @ whole, mine),
        mesh=mesh(),
        in_specs=spec,
        out_specs=PartitionSpec(),
    )
    np.testing.assert_allclose(jax.jit(run)(x), rows @ x, rtol=1e-5, atol=1e-4)


def test_a_leaf_cut_like_its_state_counts_as_whole() -> None:
    row, everywhere = PartitionSpec("x"), PartitionSpec()

    def wholes(kept: jax.Array, spec: PartitionSpec | None) -> tuple[int, ...]:
        return Block.beside(kept, jnp.full((2, 3), jax.lax.axis_index("x")), spec, "rule: a leaf", "no").whole

    def inside(cut: jax.Array, whole: jax.Array) -> jax.Array:
        assert wholes(cut, None) == (2, 3)
        assert wholes(whole, row) == (8, 3)
        with pytest.raises(ValueError, match=r"a leaf has state of shape \(2,\) cut along mesh axis 'x', and no; keep"):
            wholes(cut[:, 0], row)
        return whole

    run = jax.shard_map(inside, mesh=mesh(), in_specs=(row, everywhere), out_specs=everywhere)
    run(jnp.zeros((8, 3)), jnp.zeros((5,)))


def test_the_largest_of_nothing_is_0() -> None:
    assert block(jnp.zeros((0, 3)), None).largest(jnp.zeros((0, 3)), (0,)).tolist() == [[0, 0, 0]]


def test_outside_of_shard_map_a_leaf_is_whole() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    assert block(x, None).assemble(x) is x
    assert block(x, None).whole == (2, 3)


def test_a_block_without_a_spec_is_refused() -> None:
    run = jax.shard_map(
        lambda x: block(x, None).assemble(x), mesh=mesh(), in_specs=PartitionSpec("x"), out_specs=PartitionSpec()
    )
    with pytest.raises(ValueError, match=r"rule: the leaf is one device's block along mesh axis 'x', and it looks at"):
        run(jnp.ones((8, 2)))
