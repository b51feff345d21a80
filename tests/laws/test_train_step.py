"""A method drops into `optax_zoo.train_step`, with auxiliary output and a key."""

import jax
import numpy as np
from jax import Array

import optax_zoo
from optax_zoo import Paper
from optax_zoo._core.averages import gradient_params
from tests.laws.harness import STEPS, PyTree, assert_close, build, law, make_batch, make_loss, rate, reference


@law
def test_train_step(paper: Paper) -> None:
    walked = reference(paper)

    def loss(params: PyTree, target: PyTree) -> tuple[Array, Array]:
        value = make_loss({"target": target})(params)
        return value, 2 * value

    step = jax.jit(optax_zoo.train_step(loss, build(paper, rate(paper)), has_aux=True))
    params, state = walked.params[0], walked.states[0]
    for i in range(STEPS):
        batch = make_batch(i)
        params, state, value, twice = step(params, state, batch["target"], key=jax.random.key(batch["seed"]))
        assert_close(params, walked.params[i + 1], f"the parameters after step {i}")
        at = gradient_params(walked.states[i], walked.params[i])
        np.testing.assert_allclose(value, make_loss(batch)(at), rtol=1e-5)
        np.testing.assert_allclose(twice, 2 * value)
