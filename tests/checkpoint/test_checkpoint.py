"""Training resumed from an orbax checkpoint goes on as if it had never stopped, bit for bit, averages included."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import Array

import optax_zoo
from optax_zoo import Paper
from tests.laws.harness import STEPS, PyTree, build, law, make_batch, make_params, rate, reference


@law
def test_checkpoint(paper: Paper) -> None:
    walked = reference(paper)

    def train(params: PyTree, state: PyTree) -> PyTree:
        for i in range(STEPS, 2 * STEPS):
            updates, state = walked.step(params, state, make_batch(i))
            params = optax.apply_updates(params, updates)
        return params, state

    half_way = walked.params[-1], walked.states[-1]
    params = make_params()
    fresh = params, build(paper, rate(paper)).init(params)
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "half_way", half_way)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(Path(folder) / "half_way", fresh)

    assert_bitwise_equal(restored, half_way)
    resumed, unbroken = train(*restored), train(*half_way)
    assert_bitwise_equal(resumed, unbroken)
    assert_bitwise_equal(*(optax_zoo.eval_params(state, params) for params, state in (resumed, unbroken)))


def assert_bitwise_equal(actual: PyTree, expected: PyTree) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, mine), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == other.dtype, path
        assert raw(mine) == raw(other), path


def raw(x: Array) -> bytes:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()
