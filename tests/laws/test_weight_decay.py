"""Weight decay shrinks the leaves that its mask names and no other, in every form of the mask and wherever it runs."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import (
    PyTree,
    assert_close,
    avals,
    build,
    law,
    make_batch,
    make_mixed_params,
    make_params,
    rate,
    sharded_stepper,
    stepper,
)

WEIGHT_DECAY = 0.1
DURATION = 3


def has_masked_decay(paper: Paper) -> bool:
    return paper.kind == "optimizer" and {"weight_decay", "mask"} <= set(inspect.signature(paper.make).parameters)


def is_decayed(path: tuple[Any, ...]) -> bool:
    return path[0].key == "decayed"


def named(tree: PyTree) -> PyTree:
    return jax.tree.map_with_path(lambda path, _: is_decayed(path), tree)


PARAMS = {"decayed": {"w": make_params()["w"]}, "spared": make_params()}
MASKS = {"a tree": named(PARAMS), "a prefix": {"decayed": True, "spared": False}, "a callable": named}


def changing(count: Array) -> Array:
    """The decay coefficient until the steps that the law looks at are over."""
    return jnp.where(count < 2, WEIGHT_DECAY, 3 * WEIGHT_DECAY).astype(jnp.float32)


@law(concerns=has_masked_decay)
def test_weight_decay(paper: Paper) -> None:
    def decaying(weight_decay: Any = WEIGHT_DECAY, mask: Any = named) -> optax.GradientTransformationExtraArgs:
        return build(paper, rate(paper), weight_decay=weight_decay, mask=mask)

    tx, plain = decaying(), decaying(0.0)
    step = jax.jit(stepper(tx))

    mixed = {"decayed": make_mixed_params(), "spared": make_mixed_params()}
    state = jax.eval_shape(tx.init, mixed)
    updates, after = jax.eval_shape(stepper(tx), mixed, state, make_batch(0, mixed))
    assert avals(updates) == avals(mixed), "the dtypes or shapes of the updates"
    assert avals(after) == avals(state), "the dtypes or shapes of the state change"

    without_decay = jax.jit(stepper(plain))
    decayed, rested = PARAMS, PARAMS
    states = tx.init(PARAMS), plain.init(PARAMS)
    for i in range(DURATION):
        updates, with_decay = step(decayed, states[0], {**make_batch(i), "target": decayed})
        expected, no_decay = without_decay(rested, states[1], {**make_batch(i), "target": rested})
        states = with_decay, no_decay
        assert_close(updates["spared"], expected["spared"], f"step {i} of a spared leaf without gradient")
        decayed, rested = optax.apply_updates(decayed, updates), optax.apply_updates(rested, expected)
    start, shrunk, left = (float(optax.tree.norm(tree["decayed"])) for tree in (PARAMS, decayed, rested))
    assert shrunk < min(start, left), f"a decayed leaf of norm {start} has {shrunk} without gradient, {left} undecayed"

    @jax.jit
    def first_updates() -> dict[str, list[PyTree]]:
        forms = {name: decaying(mask=mask) for name, mask in MASKS.items()}
        forms["a schedule"] = decaying(weight_decay=changing)
        return {name: walk(form) for name, form in forms.items()}

    def walk(form: optax.GradientTransformation) -> list[PyTree]:
        params, state, walked = PARAMS, form.init(PARAMS), []
        for i in range(2):
            updates, state = stepper(form)(params, state, make_batch(i, PARAMS))
            params = optax.apply_updates(params, updates)
            walked.append(updates)
        return walked

    walked = first_updates()
    for name, updates in walked.items():
        assert_close(updates, walked["a callable"], f"the updates with {name}")

    params, alone, over_devices = PARAMS, tx.init(PARAMS), tx.init(PARAMS)
    sharded = sharded_stepper(tx, params, over_devices)
    for i in range(DURATION):
        batch = make_batch(i, PARAMS)
        expected, alone = step(params, alone, batch)
        updates, over_devices = sharded(params, over_devices, batch)
        assert_close(updates, expected, f"the updates of step {i} inside shard_map")
        params = optax.apply_updates(params, expected)
