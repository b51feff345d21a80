"""An update ignores extra arguments that it does not know."""

import jax

from optax_zoo import Paper
from tests.laws.harness import build, law, make_batch, make_params, rate, stepper


@law
def test_extra_args(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    params = make_params()
    state = jax.eval_shape(tx.init, params)
    unknown = {"no_such_argument": object(), "another_one": params}
    plain, more = (jax.make_jaxpr(step)(params, state, make_batch(0)) for step in (stepper(tx), stepper(tx, **unknown)))
    assert str(plain) == str(more), "unknown extra arguments change the update"
