"""A jitted step is traced once: neither the state it returns nor another learning rate asks for a second time."""

import jax.numpy as jnp

from optax_zoo import Paper
from tests.laws.harness import assert_close, build, law, make_batch, make_params, rate, reference, traced_rate


@law
def test_no_retrace(paper: Paper) -> None:
    walked = reference(paper)
    assert len(walked.traces) == 1, f"{len(walked.updates)} steps were traced {len(walked.traces)} times"

    step, traces = traced_rate(paper)
    params = make_params()
    state = build(paper, rate(paper)).init(params)
    first, after = step(jnp.float32(rate(paper)), params, state, make_batch(0))
    assert_close(first, walked.updates[0], "the update of a traced learning rate")
    step(jnp.float32(2 * rate(paper)), params, after, make_batch(1))
    assert len(traces) == 1, "another learning rate was traced again"
