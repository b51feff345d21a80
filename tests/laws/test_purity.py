"""Nothing is remembered outside of the state: the same inputs give the same step, and every init its own buffers."""

import jax

from optax_zoo import Paper
from tests.laws.harness import build, law, make_batch, make_params, rate, stepper


@law
def test_purity(paper: Paper) -> None:
    tx, twin = build(paper, rate(paper)), build(paper, rate(paper))
    params = make_params()
    states = tx.init(params), tx.init(params)
    first, again, other = (
        str(jax.make_jaxpr(stepper(method))(params, states[0], make_batch(0))) for method in (tx, tx, twin)
    )
    assert first == again, "a second tracing of the same update differs"
    assert first == other, "a second optimizer with the same arguments updates differently"

    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, states)) if leaf.size]
    assert len(set(buffers)) == len(buffers), "init returned a buffer that is in use elsewhere"
