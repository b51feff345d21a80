"""Every number may be a schedule: a constant one is the constant, and step i sees schedule(i), from 0 on.

A number that only some of the words read that another argument chooses among, such as a momentum beside base="sgd",
is looked at under each of these words.
"""

import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

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

NEVER = STEPS + 1


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


def words(paper: Paper) -> Iterator[dict[str, str]]:
    """Arguments that choose among words, with each word."""

    def members(hint: Any) -> Iterator[str]:
        for part in typing.get_args(hint):
            if typing.get_origin(hint) is not typing.Literal:
                yield from members(part)
            elif isinstance(part, str):
                yield part

    for name, parameter in inspect.signature(paper.make, eval_str=True).parameters.items():
        yield from ({name: word} for word in members(parameter.annotation))


@law(concerns=lambda paper: bool(schedulable(paper)), in_words=True)
def test_schedules(paper: Paper) -> None:
    values = schedulable(paper)
    for name, value in values.items():
        assert_may_be_schedule(paper, name, value)
    unread = unread_by(paper, {}, list(values))
    for chosen in words(paper):
        unread = unread and unread_by(paper, chosen, unread)
    assert not unread, f"no step i sees the schedule of {unread[0]} at i"


def unread_by(paper: Paper, chosen: dict[str, str], names: list[str]) -> list[str]:
    """Those of the named arguments whose schedules no step looks at; steps with constant ones are the reference's."""
    values = schedulable(paper)

    def schedule(value: float, disturbed_at: Array) -> Callable[[Array], Array]:
        return lambda count: jnp.float32(value) + jnp.where(count == disturbed_at, 3.0, 0.0)

    @jax.jit
    def step(disturbed: Array, params: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        schedules = {name: schedule(value, disturbed[i]) for i, (name, value) in enumerate(values.items())}
        return stepper(build(paper, rate(paper), **chosen, **schedules))(params, state, batch)

    walked = reference(paper)
    constants = {name: schedule(value, jnp.int32(NEVER)) for name, value in values.items()}
    states = [build(paper, rate(paper), **chosen, **constants).init(walked.params[0])]
    results = []
    never = np.full(len(values), NEVER, np.int32)
    for i, expected in enumerate(walked.updates):
        results.append(step(never, walked.params[i], states[i], make_batch(i)))
        states.append(results[i][1])
        if not chosen:
            assert_close(results[i][0], expected, f"step {i} of constant schedules")

    def seen(name: str, step_number: int, count: int) -> bool:
        """Whether a step looks at what an argument's schedule says at a count."""
        disturbed = np.where(np.array(list(values)) == name, count, never).astype(np.int32)
        result = step(disturbed, walked.params[step_number], states[step_number], make_batch(step_number))
        return not all(map(np.array_equal, jax.tree.leaves(result), jax.tree.leaves(results[step_number])))

    for name in names:
        if seen(name, 0, 1):
            raise Violation(f"the first step sees the schedule of {name} at 1")
    return [name for name in names if not any(seen(name, i, i) for i in range(STEPS))]
