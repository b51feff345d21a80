"""A NaN in one entry of the gradient stays in this entry of a method that claims to work entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo import Paper
from tests.laws.harness import assert_finite, law, make_batch, reference


@law(concerns=lambda paper: paper.elementwise)
def test_nan_gradient(paper: Paper) -> None:
    walked = reference(paper)
    hit = (2, 1)
    batch = make_batch(0)
    target = {**batch["target"], "w": batch["target"]["w"].at[hit].set(jnp.nan)}
    updates, state = walked.step(walked.params[0], walked.states[0], {**batch, "target": target})
    later, state = walked.step(walked.params[1], state, make_batch(1))
    spared = np.ones(target["w"].shape, bool)
    spared[hit] = False

    def elsewhere(leaf: jax.Array) -> jax.Array:
        return jnp.where(spared, leaf, jnp.zeros_like(leaf)) if leaf.shape == spared.shape else leaf

    assert_finite(jax.tree.map(elsewhere, (updates, later, state)), "an entry whose gradient was finite")
