"""Complex parameters are optimized correctly, or refused in one sentence.

Correctly: a real problem written in complex numbers takes the real path, and methods that claim to work entry by
entry follow when parameters and targets are turned by a common phase.
"""

import cmath
import os

import jax
import jax.numpy as jnp
import optax

from optax_zoo import Paper
from tests.laws.harness import (
    STEPS,
    Batch,
    PyTree,
    assert_close,
    build,
    law,
    make_batch,
    make_params,
    rate,
    reference,
    stepper,
)

PHASE = cmath.exp(0.7j)

EMITTERS = "xla_cpu_use_fusion_emitters"
OWN_EMITTERS = {EMITTERS: True} if EMITTERS in os.environ.get("XLA_FLAGS", "") else None
"""XLA as users have it: those that tests/conftest.py takes for speed lack some operations on complex numbers."""


def turned(tree: PyTree, phase: complex) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.complex64) * jnp.complex64(phase), tree)


def is_refused(paper: Paper, tx: optax.GradientTransformation, params: PyTree, batch: Batch) -> bool:
    try:
        jax.eval_shape(stepper(tx), params, jax.eval_shape(tx.init, params), batch)
    except (TypeError, ValueError) as refusal:
        if str(refusal).startswith(f"{paper.name}: ") and "complex" in str(refusal):
            return True
        raise
    return False


@law
def test_complex_leaves(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    batches = [{**make_batch(i), "target": turned(make_batch(i)["target"], 1)} for i in range(STEPS)]
    params = turned(make_params(), 1)
    if is_refused(paper, tx, params, batches[0]):
        return
    step = jax.jit(stepper(tx), compiler_options=OWN_EMITTERS)

    def walk(params: PyTree, targets: list[PyTree]) -> list[PyTree]:
        state, walked = tx.init(params), []
        for batch, target in zip(batches, targets, strict=True):
            updates, state = step(params, state, {**batch, "target": target})
            params = optax.apply_updates(params, updates)
            walked.append(updates)
        return walked

    targets = [batch["target"] for batch in batches]
    for i, updates in enumerate(walk(params, targets)):
        expected = jax.tree.map(lambda leaf: leaf.astype(jnp.complex64), reference(paper).updates[i])
        assert_close(updates, expected, f"step {i} of the real problem")

    if paper.elementwise:
        askew = jax.tree.map(lambda leaf: leaf * (1 + 0.5j * jnp.cos(7 * leaf)), params)
        straight = walk(askew, targets)
        around = walk(turned(askew, PHASE), [turned(target, PHASE) for target in targets])
        for i in range(len(batches)):
            assert_close(around[i], turned(straight[i], PHASE), f"step {i}, turned")
