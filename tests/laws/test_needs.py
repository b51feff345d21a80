"""An update does with the extra arguments that the record names, and asks in one sentence for each that is missing."""

import re

import jax
import pytest

import optax_zoo
from optax_zoo import Paper
from tests.laws.harness import PyTree, Violation, build, law, make_batch, make_loss, make_params, rate


@law(in_words=True)
def test_needs(paper: Paper) -> None:
    tx = build(paper, rate(paper))

    def update(params: PyTree, state: PyTree, names: tuple[str, ...]) -> PyTree:
        given = {"params": params, "key": jax.random.key(0)}
        given |= optax_zoo.closures(make_loss(make_batch(0)), params)
        return tx.update(given["grad"], state, **{name: given[name] for name in names})

    params = make_params()
    state = jax.eval_shape(tx.init, params)
    jax.eval_shape(lambda *args: update(*args, paper.needs), params, state)
    for missing in paper.needs:
        rest = tuple(name for name in paper.needs if name != missing)
        with pytest.raises((TypeError, ValueError)) as refusal:
            jax.eval_shape(lambda *args, rest=rest: update(*args, rest), params, state)
        if refusal.type is TypeError:
            raise Violation("the error about a missing argument is Python's own TypeError")
        if not re.match(rf"{paper.name}: needs {missing}; ", str(refusal.value)):
            raise Violation("the error about a missing argument does not name the method")
