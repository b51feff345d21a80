"""Simple moving average: which points are in it, and how much steadier it is on another domain."""

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
    only_w,
    walk,
)


@pytest.mark.parametrize("start", [0, 1, 2, 5, 12, 100])
def test_the_mean_from_one_step_before_the_start(start: int) -> None:
    params, trained, averaged = walk(zoo.with_sma(MOMENTUM, start))
    for name, points in trained.items():
        every = np.concatenate([params[name][None], points])
        for t in range(1, 13):
            expected = every[max(start, 1) - 1 : t + 1].mean(axis=0) if t >= start else every[t]
            np.testing.assert_allclose(averaged[name][t - 1], expected, rtol=1e-12)


def test_the_updates_pass_through() -> None:
    _, alone, _ = walk(MOMENTUM)
    _, trained, _ = walk(zoo.with_sma(MOMENTUM, 3))
    assert_equal_trees(trained, alone)


def test_a_start_beyond_all_steps_leaves_the_parameters() -> None:
    _, trained, averaged = walk(zoo.with_sma(MOMENTUM, 10**10))
    assert_equal_trees(averaged, trained)


def test_bfloat16_parameters_keep_a_float32_mean() -> None:
    assert_float32_beside_bfloat16(zoo.with_sma(optax.sgd(0.1), 1), "mean")


def test_other_leaves_stay() -> None:
    assert_other_leaves_stay(zoo.with_sma(only_w(optax.sgd(0.1)), 1))


def test_on_another_domain_the_mean_is_better_and_steadier_than_the_iterates() -> None:
    training = jnp.asarray(np.geomspace(0.1, 1.0, 30), jnp.float32)
    elsewhere = np.asarray(training)[::-1]
    noise = jax.random.normal(jax.random.key(0), (1000, 30))
    _, _, iterates = descend(optax.sgd(0.5), jnp.ones(30), training, noise)
    _, _, means = descend(zoo.with_sma(optax.sgd(0.5), 100), jnp.ones(30), training, noise)
    last, mean = (
        np.sum(elsewhere * np.square(np.asarray(weights)[500:] - 0.1), axis=1) for weights in (iterates, means)
    )
    assert mean.max() < 0.5 * last.min()
    assert mean.std() < 0.1 * last.std()


def test_what_cannot_be_is_refused() -> None:
    settings: Any = {"start": -1}
    with pytest.raises(ValueError, match=r"with_sma: start must be in \[0, inf\), got -1"):
        zoo.with_sma(optax.sgd(0.1), **settings)
    with pytest.raises(TypeError, match="with_sma: 'int32' is not a floating dtype"):
        zoo.with_sma(optax.sgd(0.1), accumulator_dtype="int32")
