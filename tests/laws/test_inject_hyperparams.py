"""`optax.inject_hyperparams` makes every number of the factory's signature an array of the state, under jit."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import (
    STEPS,
    arguments_of,
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


def assert_follows_schedule(paper: Paper) -> None:
    """Step i sees what a schedule of the learning rate says at i; its peak is given to methods that ask for it."""

    def schedule(count: Any) -> Array:
        return jnp.float32(rate(paper)) * (1 + 0.25 * jnp.asarray(count, jnp.float32))

    peak = {paper.peak_argument: float(schedule(STEPS - 1))} if paper.peak_argument else {}
    own, _ = traced_rate(paper, **peak)
    with default_promotion():
        tx = build(paper, schedule, optax.inject_hyperparams(paper.make), **peak)
        step = jax.jit(stepper(tx))
    params = make_params()
    state, own_state = tx.init(params), build(paper, rate(paper), **peak).init(params)
    for i in range(STEPS):
        with default_promotion():
            updates, state = step(params, state, make_batch(i))
        expected, own_state = own(schedule(i), params, own_state, make_batch(i))
        assert_close(updates, expected, f"the update of step {i} of a schedule of the learning rate")
        params = optax.apply_updates(params, expected)


@law
def test_inject_hyperparams(paper: Paper) -> None:
    walked = reference(paper)
    with default_promotion():
        tx = build(paper, rate(paper), optax.inject_hyperparams(paper.make))
        traces: list[Any] = []
        step = jax.jit(counted(stepper(tx), traces))
        params = make_params()
        state = first_state = tx.init(params)
        hyperparams = optax.tree.get(state, "hyperparams")
        signature = inspect.signature(paper.make).parameters
        for name in numbers(paper.make):
            number = arguments_of(paper).get(name, signature[name].default)
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
        assert_follows_schedule(paper)
