"""Under `jax.jit(tx.init)` what the state holds of a sharded parameter is sharded like it, and steps keep it so.

On a mesh whose axes are explicit, where the types of arrays name their sharding, as on one whose axes are automatic.
"""

import jax
from jax.sharding import AxisType, NamedSharding

from optax_zoo import Paper
from tests.laws.harness import PyTree, build, law, make_batch, make_params, matrix_mesh, rate, row_specs, stepper


def types(tree: PyTree) -> PyTree:
    return jax.tree.map(jax.typeof, tree)


def placed(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), row_specs(tree)))


def assert_laid_out(state: PyTree, like: jax.Array) -> None:
    for path, leaf in jax.tree.leaves_with_path(state):
        if leaf.shape == like.shape:
            where = jax.tree_util.keystr(path)
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), f"{where} is laid out as {leaf.sharding}"


@law
def test_init_sharding(paper: Paper) -> None:
    tx = build(paper, rate(paper), paper.make, 0.0)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = matrix_mesh(axis_type)
        params, batch = placed((make_params(), make_batch(0)), mesh)
        with jax.set_mesh(mesh):
            state = jax.jit(tx.init)(params)
            assert_laid_out(state, params["w"])
            if paper.elementwise and axis_type is AxisType.Explicit:
                updates, after = jax.jit(stepper(tx))(params, state, batch)
                assert types(updates) == types(params), "the types of the updates"
                assert types(after) == types(state), "the types of the state change"
