"""`optax.MultiSteps` accumulates gradients for a method and `optax.apply_if_finite` protects it from NaN."""

import jax
import numpy as np
import optax

from optax_zoo import Paper
from tests.laws.harness import (
    STEPS,
    Batch,
    PyTree,
    assert_close,
    build,
    default_promotion,
    law,
    make_batch,
    make_params,
    rate,
    reference,
    stepper,
)


@law
def test_accumulation(paper: Paper) -> None:
    expected = reference(paper).params[-1]
    with default_promotion():
        twice = optax.MultiSteps(build(paper, rate(paper)), 2)
        tx = optax.apply_if_finite(optax.GradientTransformationExtraArgs(twice.init, twice.update), 5)

        def step(params: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
            updates, state = stepper(tx)(params, state, batch)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step)
        params = make_params()
        state = tx.init(params)
        poisoned = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), params)
        for i in range(STEPS):
            for batch in (make_batch(i), {**make_batch(i), "target": poisoned}, make_batch(i)):
                params, state = jitted(params, state, batch)
        assert_close(params, expected, "the parameters")
