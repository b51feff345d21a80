"""Cautious weight decay: which entries decay, and that minima stay where they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo


def decayed(u: Any, p: Any, weight_decay: Any = 0.5, mask: Any = None) -> Any:
    tx = zoo.add_cautious_weight_decay(weight_decay, mask)
    return tx.update(u, tx.init(p), p)[0]


def test_entries_decay_that_the_update_shrinks_or_leaves_alone() -> None:
    u = jnp.array([1.0, -1.0, 1.0, -1.0, 0.0, 2.0])
    p = jnp.array([4.0, -4.0, -4.0, 4.0, 4.0, 0.0])
    np.testing.assert_allclose(decayed(u, p), [3.0, -3.0, 1.0, -1.0, 2.0, 2.0])


def test_small_numbers_that_disagree_do_not_decay() -> None:
    u, p = jnp.array([1e-25, 1e-25]), jnp.array([-1e-24, 1e-24])
    np.testing.assert_allclose(decayed(u, p), [1e-25, 6e-25], rtol=1e-6)


def test_complex_entries_agree_within_a_right_angle() -> None:
    u, p = jnp.array([1.0 + 0.0j, 1.0 + 0.0j]), jnp.array([2.0 + 8.0j, -2.0 + 8.0j])
    np.testing.assert_allclose(decayed(u, p), [2.0 + 4.0j, 1.0])


@pytest.mark.parametrize("mask", [{"a": True, "b": False}, lambda tree: {"a": True, "b": False}])
def test_the_mask_spares_leaves(mask: Any) -> None:
    ones = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates = decayed(ones, ones, mask=mask)
    np.testing.assert_allclose(updates["a"], 1.5)
    np.testing.assert_allclose(updates["b"], 1.0)


def test_the_coefficient_may_be_a_schedule() -> None:
    tx = zoo.add_cautious_weight_decay(lambda count: jnp.where(count < 1, 0.1, 0.2))
    p = jnp.ones(1)
    first, state = tx.update(p, tx.init(p), p)
    second, _ = tx.update(p, state, p)
    np.testing.assert_allclose([first[0], second[0]], [1.1, 1.2], rtol=1e-6)


def minimised(objective: Callable[[jax.Array], jax.Array], start: list[float], decay: Any) -> np.ndarray:
    tx = optax.chain(decay, optax.scale_by_learning_rate(0.05))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        p, state = carry
        updates, state = tx.update(jax.grad(objective)(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    p = jnp.array(start)
    return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=600))(p)[0][0])


def test_the_minimum_stays_where_it_is() -> None:
    minimum = jnp.array([3.0, -1.0])

    def bowl(p: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((p - minimum) ** 2)

    plain = minimised(bowl, [0.0, 0.0], optax.add_decayed_weights(0.5))
    np.testing.assert_allclose(plain, minimum / 1.5, rtol=1e-4)
    ours = minimised(bowl, [0.0, 0.0], zoo.add_cautious_weight_decay(0.5))
    np.testing.assert_allclose(ours, minimum, rtol=1e-4)


def test_among_minima_it_slides_to_one_where_no_entry_can_shrink_without_another_growing() -> None:
    def valley(p: jax.Array) -> jax.Array:
        return 0.5 * (jnp.sum(p) - 2) ** 2

    start = [4.0, -1.0]
    none = minimised(valley, start, optax.identity())
    assert none[1] < -1
    ours = minimised(valley, start, zoo.add_cautious_weight_decay(0.5))
    assert ours.min() > 0
    assert ours.sum() == pytest.approx(2, abs=0.01)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^add_cautious_weight_decay: weight_decay must be in \[0, inf\), got -1$"):
        zoo.add_cautious_weight_decay(-1)
    p = jnp.ones(2)
    tx = zoo.add_cautious_weight_decay(0.1)
    with pytest.raises(
        ValueError, match=r"^add_cautious_weight_decay: needs params; call update\(grads, state, params\)"
    ):
        tx.update(p, tx.init(p))
    with pytest.raises(TypeError, match=r"^add_cautious_weight_decay: mask must hold True or False for every leaf"):
        decayed(p, p, mask=0.5)
