"""Updates have the parameters' dtypes, and the state's dtypes and shapes do not change from step to step."""

import jax
import jax.numpy as jnp

from optax_zoo import Paper
from tests.laws.harness import PyTree, avals, build, law, make_batch, make_mixed_params, make_params, rate, stepper


def trees() -> dict[str, PyTree]:
    uniform = {dtype.__name__: make_params(dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)}
    return {**uniform, "mixed": make_mixed_params()}


@law
def test_dtypes(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    for name, params in trees().items():
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(stepper(tx), params, state, make_batch(0, params))
        assert avals(updates) == avals(params), f"{name}: the updates' dtypes or shapes"
        assert avals(after) == avals(state), f"{name}: the state's dtypes or shapes change"
        for path, leaf in jax.tree.leaves_with_path(state):
            coarse = leaf.shape == () and leaf.dtype in (jnp.bfloat16, jnp.float16)
            assert not coarse, f"{name}: the scalar{jax.tree_util.keystr(path)} is kept in {leaf.dtype}"
