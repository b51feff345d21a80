"""Zero gradients and tiny ones, down to where float16 squares them to 0, give finite updates of a sane size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import PyTree, assert_finite, build, law, make_batch, make_params, rate, stepper

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
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
    params = [make_params(dtype) for dtype in DTYPES]

    @jax.jit
    def step(states: list[PyTree], scale: Array, batch: PyTree) -> tuple[list[PyTree], list[PyTree]]:
        """One step a dtype, all with gradients that the narrowest one holds."""
        stepped = []
        for dtype, at, state in zip(DTYPES, params, states, strict=True):
            held = jax.tree.map(lambda t, dtype=dtype: (scale * t).astype(jnp.float16).astype(dtype), batch["target"])
            stepped.append(update(at, state, {**batch, "target": held}))
        return [u for u, _ in stepped], [state for _, state in stepped]

    states = [tx.init(at) for at in params]
    for i, scale in enumerate(SCALES):
        updates, states = step(states, scale, make_batch(i))
        assert_finite((updates, states), f"gradients of size {scale}")
        bounds, *sizes = (
            [float(np.max(np.abs(np.asarray(u, np.float32)))) for u in jax.tree.leaves(tree)] for tree in updates
        )
        for dtype, of_half in zip(DTYPES[1:], sizes, strict=True):
            for size, bound in zip(of_half, bounds, strict=True):
                assert size <= 4 * bound + 1e-6, (
                    f"gradients of size {scale}: updates of size {size} in {dtype.__name__}, {bound} in float32"
                )
