"""The engine: trees beside the gradient, and fields of the state that hold several trees."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.slots import PerParameter, zeros

PARAMS = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones((), jnp.bfloat16)}


class DelayState(NamedTuple):
    count: Array
    line: tuple[PerParameter, ...]


def delay(length: int) -> optax.GradientTransformationExtraArgs:
    """Hands out the gradient of `length` steps ago, plus a guess where there is one, minus what it must be given."""

    @leafwise(DelayState, line=(zeros(),) * length)
    def rule(g: Array, s: DelayState, h: Any, p: Array, base: Array, guess: Array | None = None) -> Any:
        waiting = (*s.line, g)
        out = waiting[0] if guess is None else waiting[0] + guess
        return out - base + 0 * p, s._replace(line=waiting[1:])

    return rule


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_field_of_several_trees(length: int) -> None:
    tx = delay(length)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    state = tx.init(PARAMS)
    assert len(state.line) == length
    assert all(jax.tree.structure(tree) == jax.tree.structure(PARAMS) for tree in state.line)
    out = zero
    for i in range(5):
        g = jax.tree.map(lambda x, i=i: jnp.full_like(x, i + 1), PARAMS)
        out, state = jax.jit(tx.update)(g, state, PARAMS, base=zero)
    assert float(out["b"]) == 5 - length
    assert out["b"].dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, tx.init({}).line) == ({},) * length
    mapped = optax.tree_map_params(tx, lambda leaf, name: name, state, {"a": "A", "b": "B"})
    assert mapped.line == ({"a": "A", "b": "B"},) * length


def test_a_tree_beside_the_gradient_may_be_absent_or_not() -> None:
    tx = delay(0)
    state = tx.init(PARAMS)
    plain, _ = tx.update(PARAMS, state, PARAMS, base=PARAMS)
    np.testing.assert_array_equal(plain["a"], 0.0)
    guessed, _ = tx.update(PARAMS, state, PARAMS, base=PARAMS, guess=PARAMS)
    np.testing.assert_array_equal(guessed["a"], PARAMS["a"])
    masked = optax.masked(tx, {"a": False, "b": True})
    guessed, _ = masked.update(PARAMS, masked.init(PARAMS), PARAMS, base=PARAMS, guess=PARAMS)
    assert float(guessed["b"]) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, r"needs base; call update\(grads, state, params, base=\.\.\.\)"),
        ({"base": {"a": PARAMS["a"]}}, r"base has no entry for the leaf at \['b'\]"),
        ({"base": PARAMS, "guess": {**PARAMS, "b": jnp.ones(2)}}, r"at \['b'\] .* guess has shape \(2,\)"),
    ],
)
def test_mistakes_in_one_sentence(given: dict[str, Any], sentence: str) -> None:
    tx = delay(1)
    with pytest.raises(ValueError, match=sentence):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, **given)
