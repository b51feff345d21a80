"""A checkpoint written on one mesh goes on on another, or on one device: nothing of the mesh is in the state."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optax_zoo as zoo
from tests.laws.harness import assert_close
from tests.mesh.test_shard_over import SHARING, made, make_mesh, placed, stepping, tree

P = PartitionSpec


@pytest.mark.parametrize("paper", SHARING)
def test_a_checkpoint_knows_no_mesh(paper: zoo.Paper, tmp_path: Path) -> None:
    host, grads = tree(), tree(seed=1)

    def train(tx: Any, params: Any, state: Any, put: Any, steps: int) -> Any:
        step = stepping(tx)
        for _ in range(steps):
            params, state = step(params, state, put(grads))
        return params, state

    alone = made(paper)
    expected = train(alone, host, alone.init(host), lambda x: x, 2)

    shared = made(paper, shard_over="data")
    rows = make_mesh(data=8)
    params = placed(host, rows, P("data"))
    half = train(shared, params, jax.jit(shared.init)(params), lambda x: placed(x, rows, P("data")), 1)
    assert jax.tree.structure(half) == jax.tree.structure(expected)

    columns = make_mesh(data=2, model=4)
    params = placed(host, columns, P(None, "model"))
    whole = NamedSharding(columns, P())
    fresh = jax.tree.map(
        lambda x: jax.device_put(x, whole) if x.ndim != 2 else x, (params, jax.jit(shared.init)(params))
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        checkpointer.wait_until_finished()
        on_columns = checkpointer.restore(tmp_path / "half", fresh)
        on_one = checkpointer.restore(tmp_path / "half", (host, alone.init(host)))
    finished = train(shared, *on_columns, lambda x: placed(x, columns, P(None, "model")), 1)
    assert_close(finished, expected, "another mesh")
    assert_close(train(alone, *on_one, lambda x: x, 1), expected, "one device")
