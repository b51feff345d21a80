"""Under `jax.jit(tx.init)` what the state holds of a sharded parameter is sharded like it."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from optax_zoo import Paper
from tests.laws.harness import build, law, make_params, matrix_mesh, rate


@law
def test_init_sharding(paper: Paper) -> None:
    sharded = NamedSharding(matrix_mesh(), PartitionSpec("data"))
    params = make_params()
    params["w"] = jax.device_put(params["w"], sharded)
    state = jax.jit(build(paper, rate(paper), paper.make, 0.0).init)(params)
    for path, leaf in jax.tree.leaves_with_path(state):
        if leaf.shape == params["w"].shape:
            where = jax.tree_util.keystr(path)
            assert leaf.sharding.is_equivalent_to(sharded, leaf.ndim), f"{where} is laid out as {leaf.sharding}"
