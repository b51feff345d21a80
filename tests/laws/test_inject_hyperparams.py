"""`optax.inject_hyperparams` makes every number of the factory's signature an array of the state, under jit."""

import inspect

import jax
import jax.numpy as jnp
import optax

from optax_zoo import Paper
from tests.laws.harness import (
    STEPS,
    assert_close,
    build,
    counted,
    default_promotion,
    law,
    make_batch,
    make_params,
    numbers,
    rate,
    reference,
    stepper,
    traced_rate,
)


@law
def test_inject_hyperparams(paper: Paper) -> None:
    walked = reference(paper)
    with default_promotion():
        tx = build(paper, rate(paper), optax.inject_hyperparams(paper.make))
        traces: list = []
        step = jax.jit(counted(stepper(tx), traces))
        params = make_params()
        state = first_state = tx.init(params)
        hyperparams = optax.tree.get(state, "hyperparams")
        signature = inspect.signature(paper.make).parameters
        for name in numbers(paper.make):
            number = paper.example.get(name, signature[name].default)
            assert name in hyperparams or not isinstance(number, int | float), f"{name} was not injected"

        for i in range(STEPS):
            updates, state = step(params, state, make_batch(i))
            params = optax.apply_updates(params, updates)
        assert_close(params, walked.params[-1], "the parameters")

        if paper.kind == "optimizer":
            first = next(iter(signature))
            doubled = optax.tree.set(first_state, **{first: jnp.float32(2 * rate(paper))})
            updates, _ = step(make_params(), doubled, make_batch(0))
            assert len(traces) == 1, "another learning rate was traced again"
    if paper.kind == "optimizer":
        own, _ = traced_rate(paper)
        expected, _ = own(jnp.float32(2 * rate(paper)), walked.params[0], walked.states[0], make_batch(0))
        assert_close(updates, expected, "the update of a changed learning rate")
