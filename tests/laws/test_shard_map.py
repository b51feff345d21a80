"""Inside `jax.shard_map`, one leaf sharded and one replicated, steps and averages are those of a single device."""

import jax

import optax_zoo
from optax_zoo import Paper
from tests.laws.harness import assert_close, build, law, make_batch, make_params, rate, reference, sharded_stepper


@law
def test_shard_map(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    walked = reference(paper)
    params = make_params()
    state = tx.init(params)
    step = sharded_stepper(tx, params, state)
    for i, expected in enumerate(walked.updates):
        updates, state = step(walked.params[i], state, make_batch(i))
        assert_close(updates, expected, f"the updates of step {i}")
    averaged, alone = (jax.jit(optax_zoo.eval_params)(last, walked.params[-1]) for last in (state, walked.states[-1]))
    assert_close(averaged, alone, "the parameters to evaluate")
