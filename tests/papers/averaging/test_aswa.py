"""ASWA and NASWA: which iterates the mean takes in, when it takes over, and how little it depends on the seed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.papers.averaging.walks import (
    MOMENTUM,
    assert_equal_trees,
    assert_float32_beside_bfloat16,
    assert_other_leaves_stay,
    descend,
    moves,
    only_w,
    walk,
)

STEPS = 24


def flat(tree: Any) -> np.ndarray:
    """One row a step with the entries of all leaves."""
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)], axis=1)


def box(start: np.ndarray, updates: np.ndarray, switches: Any, norm_filter: bool) -> tuple[Any, Any, list[int]]:
    """Parameters and mean after each step, and the steps whose iterate was taken in."""
    p, mean, n, norms = start, start, 0, []
    walked, accepted = [], []
    for t, u in enumerate(updates, start=1):
        distance = np.linalg.norm(p - mean)
        if n == 0:
            mean, n = p, 1
            accepted.append(t)
        elif not norm_filter or distance > (np.mean(norms) if norms else 0.0):
            n += 1
            mean = mean + (p - mean) / n
            norms = [distance]
            accepted.append(t)
        elif distance > 0:
            norms.append(distance)
        p = p + u
        if t in switches:
            p, norms = mean, []
        walked.append((p, mean))
    points, means = zip(*walked, strict=True)
    return np.stack(points), np.stack(means), accepted


def assert_follows_the_box(tx: optax.GradientTransformation, switches: Any, norm_filter: bool) -> list[int]:
    params, trained, averaged = walk(tx, STEPS)
    start = flat(jax.tree.map(lambda leaf: leaf[None], params))[0]
    points, means, accepted = box(start, flat(moves(MOMENTUM, STEPS)), switches, norm_filter)
    np.testing.assert_allclose(flat(trained), points, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(flat(averaged), means, rtol=1e-10, atol=1e-13)
    return accepted


@pytest.mark.parametrize("every", [1, 2, 5, 8, 10**10])
def test_the_box(every: int) -> None:
    switches = range(every, STEPS + 1, every)
    assert assert_follows_the_box(zoo.aswa(MOMENTUM, every), switches, False) == list(range(1, STEPS + 1))
    accepted = assert_follows_the_box(zoo.naswa(MOMENTUM, every), switches, True)
    assert (len(accepted) < STEPS) == (every < STEPS)


def test_the_period_may_be_a_schedule() -> None:
    def every(count: Any) -> Any:
        return jnp.where(count < 12, 3, 7)

    assert_follows_the_box(zoo.naswa(MOMENTUM, every), {3, 6, 9, 12, 14, 21}, True)


def test_an_iterate_turned_away_is_remembered_until_one_lies_farther() -> None:
    """Distances from the mean 2 (in), 1 (out), 1.4 (out), 1.5 (in, above the mean of 2, 1 and 1.4)."""
    points = [0.0, 2.0, 2.0, 2.4, 2.5, 0.0]
    gradients = -np.diff(points).reshape(-1, 1)
    tx = zoo.naswa(optax.sgd(1.0), 100)
    state, params = tx.init(jnp.zeros(1)), jnp.zeros(1)
    taken, kept = [], []
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        taken.append(int(state.n))
        kept.append((float(state.norm_sum), int(state.norm_count)))
    assert taken == [1, 2, 2, 2, 3]
    np.testing.assert_allclose(kept, [(0, 1), (2, 1), (3, 2), (4.4, 3), (1.5, 1)], rtol=1e-6)
    np.testing.assert_allclose(state.mean, 1.5, rtol=1e-6)


def test_without_a_switch_it_is_the_mean_of_the_iterates_before_their_steps() -> None:
    params, trained, averaged = walk(zoo.aswa(MOMENTUM, 10**10))
    _, alone, _ = walk(MOMENTUM)
    assert_equal_trees(trained, alone)
    for name, points in trained.items():
        before = np.concatenate([params[name][None], points[:-1]])
        np.testing.assert_allclose(averaged[name][-1], before.mean(axis=0), rtol=1e-12)


def test_naswa_is_aswa_with_its_filter() -> None:
    jax.tree.map(
        np.testing.assert_array_equal,
        walk(zoo.naswa(MOMENTUM, 5)),
        walk(zoo.aswa(MOMENTUM, 5, norm_filter=True)),
    )


def test_without_the_filter_no_norms_are_kept() -> None:
    state = zoo.aswa(optax.sgd(0.1), 5).init(jnp.ones(2))
    assert (state.switched, state.norm_sum, state.norm_count) == (None, None, None)


def test_the_filter_turns_not_a_number_away_and_a_switch_cures_it() -> None:
    tx = zoo.naswa(optax.sgd(0.1), 4)
    params = jnp.ones(2)
    state = tx.init(params)
    for gradient in (1.0, jnp.nan, 1.0, 1.0):
        updates, state = tx.update(jnp.full(2, gradient), state, params)
        params = optax.apply_updates(params, updates)
        assert jnp.isfinite(zoo.eval_params(state, params)).all()
        assert jnp.isfinite(state.norm_sum)
    assert state.n == 2
    assert jnp.isnan(params).all()


@pytest.mark.parametrize("wrap", [zoo.aswa, zoo.naswa])
def test_bfloat16_parameters_keep_a_float32_mean(wrap: Any) -> None:
    assert_float32_beside_bfloat16(wrap(optax.sgd(0.1), 5), "mean")


@pytest.mark.parametrize("wrap", [zoo.aswa, zoo.naswa])
def test_other_leaves_stay(wrap: Any) -> None:
    assert_other_leaves_stay(wrap(only_w(optax.sgd(0.1)), 3))


@pytest.mark.parametrize("wrap", [zoo.aswa, zoo.naswa])
def test_the_weights_depend_less_on_the_seed(wrap: Any) -> None:
    curvature = jnp.asarray(np.geomspace(0.05, 1.0, 16), jnp.float32)
    noise = jax.random.normal(jax.random.key(0), (20, 400, 16))

    def spread(tx: optax.GradientTransformation) -> float:
        last = jax.vmap(lambda seen: descend(tx, jnp.ones(16), curvature, seen)[0])(noise)
        return float(jnp.mean(jnp.std(last, axis=0)))

    assert spread(wrap(optax.sgd(0.5), 50)) < 0.4 * spread(optax.sgd(0.5))


@pytest.mark.parametrize("name", ["aswa", "naswa"])
def test_what_cannot_be_is_refused(name: str) -> None:
    wrap = getattr(zoo, name)
    with pytest.raises(ValueError, match=rf"{name}: switch_every must be in \[1, inf\), got 0"):
        wrap(optax.sgd(0.1), 0)
    with pytest.raises(TypeError, match=rf"{name}: inner must be an optax\.GradientTransformation, got 0\.1"):
        wrap(0.1, 5)
