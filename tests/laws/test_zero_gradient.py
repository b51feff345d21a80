"""Zero gradients and tiny ones, down to where float16 squares them to 0, give finite updates of a sane size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
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


@law
def test_zero_gradient(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    update = stepper(tx, linear)
    pairs = [(dtype, half) for half in HALVES for dtype in (half, jnp.float32)]
    params = [make_params(dtype) for dtype, _ in pairs]

    @jax.jit
    def step(states: list[PyTree], scale: Array, batch: PyTree) -> tuple[list[PyTree], list[PyTree]]:
        """One step a pair, with gradients that the half precision holds, too."""
        stepped = []
        for at, state, (dtype, half) in zip(params, states, pairs, strict=True):
            held = jax.tree.map(
                lambda t, half=half, dtype=dtype: (scale * t).astype(half).astype(dtype), batch["target"]
            )
            stepped.append(update(at, state, {**batch, "target": held}))
        return [u for u, _ in stepped], [state for _, state in stepped]

    states = [tx.init(at) for at in params]
    for i, scale in enumerate(SCALES):
        updates, states = step(states, scale, make_batch(i))
        assert_finite((updates, states), f"gradients of size {scale}")
        for half, of_half, of_single in zip(HALVES, updates[::2], updates[1::2], strict=True):
            for leaf, single in zip(jax.tree.leaves(of_half), jax.tree.leaves(of_single), strict=True):
                size, bound = (float(np.max(np.abs(np.asarray(u, np.float32)))) for u in (leaf, single))
                assert size <= 4 * bound + 1e-6, (
                    f"gradients of size {scale}: updates of size {size} in {half.__name__}, {bound} in float32"
                )
