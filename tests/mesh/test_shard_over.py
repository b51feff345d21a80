"""Every rule that orthogonalises shares its matrices out over devices, and the result is that of one device."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_zoo as zoo
from benchmarks import hlo
from optax_zoo._core.sharing import Deal
from tests.laws.harness import assert_close, build

P = PartitionSpec
PyTree = Any

SHARING = [
    pytest.param(paper, id=paper.name)
    for paper in zoo.papers().values()
    if paper.trains and "shard_over" in inspect.signature(paper.make).parameters
]


def make_mesh(kind: AxisType = AxisType.Auto, **axes: int) -> Mesh:
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def tree(wide: int = 11, tall: int = 3, seed: int = 0, scale: int = 1) -> PyTree:
    """Matrices of two shapes, more than devices of the one and less of the other, and a vector."""
    draw = np.random.default_rng(seed)
    leaves = {f"wide_{i}": draw.normal(size=(8 * scale, 16 * scale)) for i in range(wide)}
    leaves |= {f"tall_{i}": draw.normal(size=(16 * scale, 8 * scale)) for i in range(tall)}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {**leaves, "vector": draw.normal(size=8)})


def placed(host: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    """Matrices sharded, the vector on every device."""
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P())), host)


def stepping(tx: optax.GradientTransformationExtraArgs, **more: Any) -> Any:
    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def made(paper: zoo.Paper, **arguments: Any) -> optax.GradientTransformationExtraArgs:
    """The method; a transform precedes SGD without momentum, whose slots optax leaves where they are made."""
    return build(paper, 0.1, None, 0.0, **arguments)


def two_steps(tx: optax.GradientTransformationExtraArgs, params: PyTree, grads: PyTree, **more: Any) -> Any:
    step, state = stepping(tx, **more), jax.jit(tx.init)(params)
    for _ in range(2):
        params, state = step(params, state, grads)
    return params, state


def assert_sharded_alike(found: PyTree, params: PyTree) -> None:
    """Parameters, and what of the state has their shape and name, lie where the parameters lay."""
    for path, leaf in jax.tree.leaves_with_path(found):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in params]
        if names and leaf.shape == params[names[0]].shape:
            assert leaf.sharding.is_equivalent_to(params[names[0]].sharding, leaf.ndim), jax.tree_util.keystr(path)


LAYOUTS = {
    "replicated": ({"data": 8}, P(), AxisType.Auto),
    "rows": ({"data": 8}, P("data"), AxisType.Auto),
    "columns of another axis": ({"data": 4, "model": 2}, P(None, "model"), AxisType.Auto),
    "rows, explicit axes": ({"data": 8}, P("data"), AxisType.Explicit),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("paper", SHARING)
def test_under_jit_it_is_the_update_of_one_device(paper: zoo.Paper, layout: str) -> None:
    axes, spec, kind = LAYOUTS[layout]
    alone, _ = two_steps(made(paper), tree(), tree(seed=1))
    mesh = make_mesh(kind, **axes)
    params = placed(tree(), mesh, spec)
    tx = made(paper, shard_over="data")
    together, state = two_steps(tx, params, placed(tree(seed=1), mesh, spec))
    assert_close(together, alone, layout)
    assert_sharded_alike((together, state), params)


@pytest.mark.parametrize("paper", SHARING)
def test_inside_shard_map_it_is_the_update_of_one_device(paper: zoo.Paper) -> None:
    params, grads = tree(), tree(seed=1)
    kinds = (P(), P("data"), P(None, "data"), P(None, "model"), P(("data", "model")), P("model", "data"))
    names = [name for name in params if name != "vector"]
    specs = {name: kinds[i % len(kinds)] for i, name in enumerate(names)} | {"vector": P()}
    alone, _ = two_steps(made(paper), params, grads)
    for share in ("data", ("model", "data")):
        tx = made(paper, shard_over=share)

        def step(params: PyTree, grads: PyTree, tx: Any = tx) -> PyTree:
            state = tx.init(params)
            for _ in range(2):
                updates, state = tx.update(grads, state, params, param_specs=specs)
                params = optax.apply_updates(params, updates)
            return params

        sharded = jax.shard_map(step, mesh=make_mesh(data=4, model=2), in_specs=(specs, specs), out_specs=specs)
        assert_close(jax.jit(sharded)(params, grads), alone, f"shared over {share}")


def compiled(spec: PartitionSpec, mesh: Mesh, host: PyTree, **arguments: Any) -> jax.stages.Compiled:
    params = placed(host, mesh, spec)
    tx = zoo.muon(0.1, method="plain", **arguments)
    return stepping(tx).lower(params, jax.jit(tx.init)(params), params).compile()


EVEN = tree(16, 8, scale=4)
"""32 x 64 and 64 x 32, shares of two matrices and of one."""
NBYTES = 4 * 24 * 32 * 64


def test_replicated_matrices_take_one_gather_per_shape_and_a_share_of_the_operations() -> None:
    program = compiled(P(), make_mesh(data=8), EVEN, shard_over="data")
    assert hlo.traffic(program) == {"all-gather": hlo.Traffic(2, NBYTES)}
    alone = compiled(P(), make_mesh(data=1), EVEN)
    assert hlo.flops(program) <= 1.1 / 8 * hlo.flops(alone)


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")])
def test_matrices_spread_over_the_same_devices_only_change_places(spec: PartitionSpec) -> None:
    program = compiled(spec, make_mesh(data=8), EVEN, shard_over="data")
    assert hlo.traffic(program) == {"all-to-all": hlo.Traffic(4, 2 * NBYTES // 8)}
    alone = compiled(P(), make_mesh(data=1), EVEN)
    assert hlo.flops(program) <= 1.1 / 8 * hlo.flops(alone)


def test_tensor_parallel_matrices_are_made_whole_once_and_come_back_in_parts() -> None:
    mesh = make_mesh(AxisType.Explicit, data=4, model=2)
    program = compiled(P(None, "model"), mesh, EVEN, shard_over="data")
    assert hlo.traffic(program) == {"all-gather": hlo.Traffic(4, NBYTES // 4 + NBYTES // 2)}
    both = compiled(P(None, "model"), mesh, EVEN, shard_over=("data", "model"))
    alone = compiled(P(), make_mesh(data=1), EVEN)
    assert hlo.flops(program) <= 1.1 / 4 * hlo.flops(alone)
    assert hlo.flops(both) <= 1.1 / 8 * hlo.flops(alone)


def test_without_it_every_device_does_all_the_work() -> None:
    alone = compiled(P(), make_mesh(data=1), EVEN)
    replicated = compiled(P(), make_mesh(data=8), EVEN)
    assert hlo.traffic(replicated) == {}
    assert hlo.flops(replicated) >= 0.99 * hlo.flops(alone)


def test_matrices_left_over_are_dealt_to_different_devices() -> None:
    deal = Deal.of([12, 12, 24, 3], [52.0, 30.0, 60.0, 1.0], 8)
    load = np.zeros(8)
    for hands, cost in zip(deal.hands, [52.0, 30.0, 60.0, 1.0], strict=True):
        load += hands.rounds * cost
        assert len(set(hands.owners)) == len(hands.owners)
        np.add.at(load, list(hands.owners), cost)
    assert load.sum() == 12 * 52 + 12 * 30 + 24 * 60 + 3
    assert load.max() <= 1.1 * load.mean()
    assert [sorted({k for k in turn if k >= 0}) for turn in deal.turns] == [[0, 1], [3]]


def test_dealt_stacks_come_back_in_order() -> None:
    for count in (0, 3, 8, 11):
        (hands,) = Deal.of([count], [1.0], 8).hands
        stack = jnp.arange(count * 6.0).reshape(count, 2, 3)
        dealt = hands.dealt(stack)
        assert len(dealt) == 8 * (hands.rounds + bool(hands.owners))
        np.testing.assert_array_equal(hands.collected(dealt), stack)


def test_views_with_layers_experts_and_blocks_are_shared_out_too() -> None:
    draw = np.random.default_rng(0)
    shapes = {"layers": (5, 8, 16), "qkv": (8, 48), "experts": (8, 16, 8)}
    params = {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    views = {
        "layers": zoo.MatrixView(1, 2, batch=0),
        "qkv": zoo.MatrixView(split=3),
        "experts": zoo.MatrixView(1, 2, batch=0),
    }
    mesh = make_mesh(data=8)
    specs = {"layers": P(), "qkv": P("data"), "experts": P("data")}
    spread = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in params.items()}
    for paper in ("muon", "normuon", "adago"):
        alone, _ = two_steps(zoo.create(paper, 0.1, dimension_numbers=views), params, params)
        tx = zoo.create(paper, 0.1, dimension_numbers=views, shard_over="data")
        for more in ({}, {"param_specs": specs}):
            together, _ = two_steps(tx, spread, spread, **more)
            assert_close(together, alone, f"{paper} {more}")


def test_experts_that_are_spread_over_the_same_devices_stay_at_home() -> None:
    mesh = make_mesh(data=8)
    params = {"experts": jax.device_put(jnp.ones((8, 16, 8)), NamedSharding(mesh, P("data")))}
    tx = zoo.muon(0.1, dimension_numbers=zoo.MatrixView(1, 2, batch=0), muon_mask=True, shard_over="data")
    step = stepping(tx, param_specs={"experts": P("data")})
    assert hlo.traffic(step.lower(params, jax.jit(tx.init)(params), params).compile()) == {}


def test_a_mesh_without_the_axis_is_named() -> None:
    params = {"w": jnp.ones((4, 8))}
    tx = zoo.muon(0.1, shard_over="data")
    sentence = "muon: shard_over='data' needs a mesh with this axis; place the parameters with a NamedSharding"
    with pytest.raises(ValueError, match=sentence):
        tx.update(params, tx.init(params), params)
    spread = placed(params, make_mesh(model=8), P())
    with pytest.raises(ValueError, match=r"needs a mesh with this axis; the mesh here has \('model',\)"):
        tx.update(spread, tx.init(spread), spread)


@pytest.mark.parametrize(
    ("share", "kind", "sentence"),
    [
        (3, TypeError, "muon: shard_over must be a mesh axis such as 'data', several, or a NamedSharding, got 3"),
        ((), ValueError, "muon: shard_over must name mesh axes, each once"),
        (("a", "a"), ValueError, "muon: shard_over must name mesh axes, each once"),
    ],
)
def test_what_is_no_axis_is_refused(share: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        zoo.muon(0.1, shard_over=share)


def test_a_named_sharding_and_set_mesh_name_the_mesh() -> None:
    mesh = make_mesh(data=8)
    params = tree()
    alone, _ = two_steps(zoo.muon(0.1), params, params)
    tx = zoo.muon(0.1, shard_over=NamedSharding(mesh, P("data")))
    assert_close(two_steps(tx, params, params)[0], alone, "a NamedSharding")
    with jax.set_mesh(mesh):
        assert_close(two_steps(zoo.muon(0.1, shard_over="data"), params, params)[0], alone, "set_mesh")
