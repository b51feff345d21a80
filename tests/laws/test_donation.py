"""Parameters and state, fresh ones and a step's results, may be donated together."""

import jax
import optax

from optax_zoo import Paper
from tests.laws.harness import (
    STEPS,
    Batch,
    PyTree,
    assert_close,
    build,
    law,
    make_batch,
    make_params,
    rate,
    reference,
    stepper,
)


@law
def test_donation(paper: Paper) -> None:
    tx = build(paper, rate(paper))

    def step(params: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        updates, state = stepper(tx)(params, state, batch)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    params = make_params()
    state = tx.init(params)
    for i in range(STEPS):
        params, state = donating(params, state, make_batch(i))
    assert_close(params, reference(paper).params[-1], "the parameters")
