"""`vmap` over seeds and learning rates, traced, gives what a Python loop gives."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import (
    STEPS,
    PyTree,
    assert_close,
    build,
    law,
    make_batch,
    make_params,
    rate,
    rollout,
    traced_rate,
)

FACTORS = (1.0, 2.0)
SEEDS = (1.0, -0.5)


@law
def test_vmap(paper: Paper) -> None:
    rates = [jnp.float32(factor * rate(paper)) for factor in FACTORS]
    starts = [jax.tree.map(lambda leaf, seed=seed: seed * leaf, make_params()) for seed in SEEDS]
    batches = [make_batch(i) for i in range(STEPS)]

    def train(learning_rate: Array, params: PyTree) -> PyTree:
        return rollout(build(paper, learning_rate), params, batches)[0]

    over_seeds = jax.vmap(train, in_axes=(None, 0))
    together = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(
        jnp.stack(rates), jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    )
    step, _ = traced_rate(paper)
    for i, learning_rate in enumerate(rates):
        for j, params in enumerate(starts):
            state = build(paper, learning_rate).init(params)
            for batch in batches:
                updates, state = step(learning_rate, params, state, batch)
                params = optax.apply_updates(params, updates)
            assert_close(jax.tree.map(lambda leaf, at=(i, j): leaf[at], together), params, f"rate {i}, seed {j}")
