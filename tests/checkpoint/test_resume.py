"""Law "checkpoint": training resumed from disk goes on as if it had never stopped, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import optax_zoo

LAW = "checkpoint"
STEPS = 3
BREAKAGES = (AssertionError, AttributeError, KeyError, TypeError, ValueError)


@pytest.fixture(autouse=True)
def _optax_promotes_dtypes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "encoder": {"kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "bias": jnp.zeros(6)},
        "readout": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    }


def loss_fn(params, inputs):
    hidden = jnp.tanh(inputs @ params["encoder"]["kernel"] + params["encoder"]["bias"])
    return jnp.mean(jnp.square(hidden @ params["readout"] - 1.0))


def batch(t):
    return np.random.default_rng(t).normal(size=(5, 4)).astype(np.float32)


def assert_bitwise_equal(expected, actual):
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True):
        assert a.dtype == b.dtype, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def resume_and_compare(tx, params, folder):
    step = jax.jit(optax_zoo.train_step(loss_fn, tx))

    def train(params, opt_state, steps):
        for t in steps:
            params, opt_state, _ = step(params, opt_state, batch(t))
        return params, opt_state

    half_way = train(params, tx.init(params), range(STEPS))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "half_way", half_way)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder / "half_way", (params, tx.init(params)))

    assert_bitwise_equal(half_way, restored)
    straight = train(*half_way, range(STEPS, 2 * STEPS))
    resumed = train(*restored, range(STEPS, 2 * STEPS))
    assert_bitwise_equal(straight, resumed)


@pytest.mark.parametrize("paper", optax_zoo.papers().values(), ids=lambda paper: paper.name)
def test_resumed_training_equals_uninterrupted_training(paper, params, tmp_path):
    tx = paper.build(1e-2 * paper.relative_learning_rate)
    if LAW in paper.breaks:
        with pytest.raises(BREAKAGES):
            resume_and_compare(tx, params, tmp_path)
    else:
        resume_and_compare(tx, params, tmp_path)
