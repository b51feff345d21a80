"""`vmap` over seeds and learning rates, traced, gives what a Python loop gives."""

import itertools

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
    traced_rate,
)

FACTORS = (1.0, 2.0)
SEEDS = (1.0, -0.5)

Carry = tuple[PyTree, PyTree]


@law
def test_vmap(paper: Paper) -> None:
    update, _ = traced_rate(paper)

    def init(learning_rate: Array, params: PyTree) -> Carry:
        return params, build(paper, learning_rate).init(params)

    def step(learning_rate: Array, carry: Carry, batch: Batch) -> Carry:
        updates, state = update(learning_rate, *carry, batch)
        return optax.apply_updates(carry[0], updates), state

    pairs = list(itertools.product(FACTORS, SEEDS))
    rates = [jnp.float32(factor * rate(paper)) for factor, _ in pairs]
    starts = [jax.tree.map(lambda leaf, seed=seed: seed * leaf, make_params()) for _, seed in pairs]
    all_rates, all_starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(rates, starts, strict=True))

    together = jax.vmap(init)(all_rates, all_starts)
    alone = [init(*pair) for pair in zip(rates, starts, strict=True)]
    step_together = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    for i in range(STEPS):
        together = step_together(all_rates, together, make_batch(i))
        alone = [step(learning_rate, carry, make_batch(i)) for learning_rate, carry in zip(rates, alone, strict=True)]
    for i, (params, _) in enumerate(alone):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together[0]), params, f"rate and seed {pairs[i]}")
