"""Every number may be a schedule: a constant one is the constant, and step i sees schedule(i), from 0 on."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import (
    STEPS,
    Batch,
    PyTree,
    Violation,
    assert_close,
    build,
    law,
    make_batch,
    make_params,
    numbers,
    rate,
    reference,
    required,
    stepper,
)

NEVER = STEPS


def schedulable(paper: Paper) -> dict[str, float]:
    """The factory's non-structural numbers and their values."""
    signature = inspect.signature(paper.make).parameters
    given = {name: p.default for name, p in signature.items()} | required(paper, rate(paper), None)
    floating = (name for name, types in numbers(paper.make).items() if float in types)
    return {name: given[name] for name in floating if type(given[name]) in (int, float)}


def assert_may_be_schedule(paper: Paper, name: str, value: float) -> None:
    params = make_params()
    try:
        tx = build(paper, rate(paper), **{name: lambda count: jnp.float32(value)})
        jax.eval_shape(stepper(tx), params, jax.eval_shape(tx.init, params), make_batch(0))
    except TypeError as refusal:
        raise Violation(f"{name} may not be a schedule") from refusal


@law(concerns=lambda paper: bool(schedulable(paper)), in_words=True)
def test_schedules(paper: Paper) -> None:
    values = schedulable(paper)
    for name, value in values.items():
        assert_may_be_schedule(paper, name, value)

    def schedule(value: float, disturbed_at: Array) -> Callable[[Array], Array]:
        return lambda count: jnp.float32(value) + jnp.where(count == disturbed_at, 3.0, 0.0)

    @jax.jit
    def step(disturbed: Array, params: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        schedules = {name: schedule(value, disturbed[i]) for i, (name, value) in enumerate(values.items())}
        return stepper(build(paper, rate(paper), **schedules))(params, state, batch)

    walked = reference(paper)
    constants = {name: schedule(value, jnp.int32(NEVER)) for name, value in values.items()}
    states = [build(paper, rate(paper), **constants).init(walked.params[0])]
    results = []
    never = np.full(len(values), NEVER, np.int32)
    for i, expected in enumerate(walked.updates):
        results.append(step(never, walked.params[i], states[i], make_batch(i)))
        states.append(results[i][1])
        assert_close(results[i][0], expected, f"step {i} of constant schedules")

    def seen(argument: int, step_number: int, count: int) -> bool:
        """Whether a step looks at what an argument's schedule says at a count."""
        disturbed = np.where(np.arange(len(values)) == argument, count, never).astype(np.int32)
        result = step(disturbed, walked.params[step_number], states[step_number], make_batch(step_number))
        return not all(map(np.array_equal, jax.tree.leaves(result), jax.tree.leaves(results[step_number])))

    for argument, name in enumerate(values):
        assert any(seen(argument, i, i) for i in range(STEPS)), f"no step i sees the schedule of {name} at i"
        assert not seen(argument, 0, 1), f"the first step sees the schedule of {name} at 1"
