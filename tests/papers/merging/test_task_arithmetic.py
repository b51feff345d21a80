"""Task arithmetic: tasks are added and taken away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.papers.merging.recorded import Recorded


def test_the_authors_values() -> None:
    recorded = Recorded("uncertainty_merge.basic")
    kwargs = recorded.meta["extra"]["task_arithmetic"]
    with jax.enable_x64(True):
        merged = zoo.task_arithmetic(recorded.tree("in/base/"), recorded.tree("in/models/"), **kwargs)
        recorded.assert_equal(merged, "out/task_arithmetic/")


def test_one_task_is_added_and_taken_away() -> None:
    base, model = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([1.5, 1.0, 3.0])
    np.testing.assert_allclose(zoo.task_arithmetic(base, [model]), model)
    np.testing.assert_allclose(zoo.task_arithmetic(base, [model], 0.0), base)
    np.testing.assert_allclose(zoo.task_arithmetic(base, [model], -1.0), [0.5, 3.0, 3.0])


def test_tasks_that_use_other_weights_do_not_disturb_each_other() -> None:
    """Two regressions on inputs of their own, each learned from one base, are both solved by the sum."""
    rng = np.random.default_rng(0)
    inputs = [np.zeros((50, 8), np.float32) for _ in range(2)]
    inputs[0][:, :4], inputs[1][:, 4:] = rng.normal(size=(2, 50, 4))
    targets = [x @ rng.normal(size=8).astype(np.float32) for x in inputs]
    base = jnp.asarray(rng.normal(size=8), jnp.float32)

    def loss(w: jax.Array, task: int) -> jax.Array:
        return jnp.mean((inputs[task] @ w - targets[task]) ** 2)

    def learned(task: int) -> jax.Array:
        descend = jax.jit(lambda w: w - 0.1 * jax.grad(loss)(w, task))
        w = base
        for _ in range(150):
            w = descend(w)
        return w

    models = [learned(0), learned(1)]
    both = zoo.task_arithmetic(base, models)
    forgotten = zoo.task_arithmetic(base, models[:1], -1.0)
    for task in range(2):
        assert loss(both, task) < 1e-4 < 0.1 < loss(models[1 - task], task)
    assert loss(forgotten, 0) > loss(base, 0)
    np.testing.assert_allclose(loss(forgotten, 1), loss(base, 1), rtol=1e-5)


def test_an_infinite_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task_arithmetic: alpha must be in \(-inf, inf\), got inf"):
        zoo.task_arithmetic(jnp.ones(2), [jnp.ones(2)], float("inf"))
