"""Steps may be scanned, and taken or left under a condition."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

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

Carry = tuple[PyTree, PyTree]


@law
def test_scan_and_cond(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    step = stepper(tx)

    def taken(carry: Carry, batch: Batch) -> Carry:
        params, state = carry
        updates, state = step(params, state, batch)
        return optax.apply_updates(params, updates), state

    def body(carry: Carry, given: tuple[Array, Batch]) -> tuple[Carry, PyTree]:
        take, batch = given
        carry = jax.lax.cond(take, taken, lambda carry, batch: carry, carry, batch)
        return carry, carry[0]

    left_out = [make_batch(i) for i in (0, 99, *range(1, STEPS))]
    takes = jnp.array([True, False] + [True] * (STEPS - 1))
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *left_out)
    params = make_params()
    walked = jax.jit(lambda carry: jax.lax.scan(body, carry, (takes, batches))[1])((params, tx.init(params)))
    for i, expected in zip((0, *range(2, STEPS + 1)), reference(paper).params[1:], strict=True):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], walked), expected, f"the parameters after step {i}")
