"""`None`, 0-d and zero-size leaves, and trees without a leaf, are parameters like any other."""

import jax
import jax.numpy as jnp

from optax_zoo import Paper
from tests.laws.harness import Batch, PyTree, assert_finite, build, law, make_batch, make_params, rate, stepper


@law
def test_empty_leaves(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    mixed = {
        "matrix": make_params()["w"],
        "none": None,
        "scalar": jnp.float32(0.5),
        "column": jnp.zeros((0,)),
        "rows": jnp.zeros((0, 3)),
    }
    trees = {"mixed": mixed, "nothing": {}, "only None": {"none": None}, "only empty": {"rows": mixed["rows"]}}

    @jax.jit
    def step(states: dict[str, PyTree], batches: dict[str, Batch]) -> dict[str, PyTree]:
        return {name: stepper(tx)(params, states[name], batches[name]) for name, params in trees.items()}

    states = {name: tx.init(params) for name, params in trees.items()}
    for i in range(2):
        stepped = step(states, {name: make_batch(i, params) for name, params in trees.items()})
        for name, (updates, state) in stepped.items():
            assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, trees[name]), name
            assert_finite((updates, state), name)
            states[name] = state
