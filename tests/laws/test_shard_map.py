"""Inside `jax.shard_map`, one leaf sharded and one replicated, steps are those of a single device."""

import jax
from jax.sharding import PartitionSpec

from optax_zoo import Paper
from tests.laws.harness import (
    ROWS,
    PyTree,
    assert_close,
    build,
    law,
    make_batch,
    make_params,
    matrix_mesh,
    rate,
    reference,
    stepper,
)


def specs(tree: PyTree) -> PyTree:
    """Rows are split over devices: of the matrix, and of what the state keeps of its rows."""

    def spec(leaf: jax.Array) -> PartitionSpec:
        return PartitionSpec("data") if leaf.shape[:1] == (ROWS,) else PartitionSpec()

    return jax.tree.map(spec, tree)


@law
def test_shard_map(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    walked = reference(paper)
    params = make_params()
    state = tx.init(params)
    over_state = specs(state)
    over_params = specs(params)
    step = jax.jit(
        jax.shard_map(
            stepper(tx, param_specs=over_params),
            mesh=matrix_mesh(),
            in_specs=(over_params, over_state, {"target": over_params, "seed": PartitionSpec()}),
            out_specs=(over_params, over_state),
        )
    )
    for i, expected in enumerate(walked.updates):
        updates, state = step(walked.params[i], state, make_batch(i))
        assert_close(updates, expected, f"the updates of step {i}")
