"""`masked`, `partition`, `chain` and `named_chain` of optax leave a method as it is."""

from collections.abc import Callable

import jax
import optax
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import (
    Batch,
    PyTree,
    assert_close,
    build,
    default_promotion,
    law,
    make_loss,
    make_params,
    rate,
    rollout,
    stacked_batches,
)


@law
def test_combinators(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    params = make_params()
    only_w, only_b = {"b": False, "w": True}, {"b": True, "w": False}
    freeze = optax.set_to_zero()

    def loss_of_w(batch: Batch) -> Callable[[PyTree], Array]:
        return lambda w: make_loss(batch)({**params, **w})

    forms = {
        "chain": optax.chain(optax.identity(), tx),
        "named_chain": optax.named_chain(("before", optax.identity()), ("method", tx)),
    }
    partial_forms = {
        "masked": optax.chain(optax.masked(tx, only_w), optax.masked(freeze, only_b)),
        "partition": optax.partition({"method": tx, "frozen": freeze}, {"b": "frozen", "w": "method"}),
    }
    batches = stacked_batches()

    @jax.jit
    def run() -> tuple[PyTree, PyTree]:
        def reached(tx: optax.GradientTransformation) -> PyTree:
            return rollout(tx, params, batches)[0]

        alone, _ = rollout(tx, {"w": params["w"]}, batches, loss_of=loss_of_w)
        whole = {"": reached(tx), **{name: reached(form) for name, form in forms.items()}}
        part = {"": {**params, **alone}, **{name: reached(form) for name, form in partial_forms.items()}}
        return whole, part

    with default_promotion():
        for results in run():
            for name, result in results.items():
                assert_close(result, results[""], name)
