"""Zero gradients and tiny ones, down to where float16 squares them to 0, give finite updates of a sane size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import PyTree, assert_finite, build, law, make_batch, make_params, rate, stepper

HALVES = (jnp.bfloat16, jnp.float16)
SCALES = (0.0, 0.0, 1e-6, 1e-4)


def linear(batch: PyTree) -> Callable[[PyTree], Array]:
    """A loss whose gradient is the batch's target, to the last bit."""

    def loss(params: PyTree) -> Array:
        slopes = jax.tree.map(lambda p, g: jnp.sum((p * g).astype(jnp.float32)), params, batch["target"])
        return sum(jax.tree.leaves(slopes), start=jnp.zeros((), jnp.float32))

    return loss


def follow(tx: optax.GradientTransformation, dtype: type, exact_in: type) -> tuple[PyTree, PyTree]:
    """The updates and states along gradients that `exact_in` holds, at parameters of `dtype`."""
    params = make_params(dtype)
    state, step = tx.init(params), stepper(tx, linear)
    updates, states = [], []
    for i, scale in enumerate(SCALES):
        batch = make_batch(i)
        held = jax.tree.map(lambda t, scale=scale: (scale * t).astype(exact_in).astype(dtype), batch["target"])
        u, state = step(params, state, {**batch, "target": held})
        updates.append(u)
        states.append(state)
    return updates, states


@law
def test_zero_gradient(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    halves, singles = jax.jit(
        lambda: ([follow(tx, half, half) for half in HALVES], [follow(tx, jnp.float32, half) for half in HALVES])
    )()
    for half, (updates, states), (expected, states_of_single) in zip(HALVES, halves, singles, strict=True):
        assert_finite((expected, states_of_single), "float32")
        assert_finite((updates, states), half.__name__)
        for scale, u, reference in zip(SCALES, updates, expected, strict=True):
            for leaf, of_single in zip(jax.tree.leaves(u), jax.tree.leaves(reference), strict=True):
                size, bound = (float(np.max(np.abs(np.asarray(x, np.float32)))) for x in (leaf, of_single))
                assert size <= 4 * bound + 1e-6, (
                    f"gradients of size {scale}: updates of size {size} in {half.__name__}, {bound} in float32"
                )
