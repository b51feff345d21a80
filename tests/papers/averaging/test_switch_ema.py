"""Switch EMA: the box, when it switches, the decay's warm-up, and what a switch does to a noisy valley."""

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


def box(start: np.ndarray, updates: np.ndarray, decays: Any, switches: Any) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and average after each step, with the decays and the steps t at which the average takes over."""
    p = average = start
    walked = []
    for t, (u, decay) in enumerate(zip(updates, decays, strict=True), start=1):
        p = p + u
        average = decay * average + (1 - decay) * p
        p = average if t in switches else p
        walked.append((p, average))
    points, averages = zip(*walked, strict=True)
    return np.stack(points), np.stack(averages)


def assert_follows_the_box(tx: optax.GradientTransformation, decays: Any, switches: Any) -> None:
    params, trained, averaged = walk(tx)
    for name, updates in moves(MOMENTUM).items():
        points, averages = box(params[name], updates, decays, switches)
        np.testing.assert_allclose(trained[name], points, rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(averaged[name], averages, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(
    ("every", "start", "switches"),
    [(4, 0, {4, 8, 12}), (4, 3, {8, 12}), (4, 2, {4, 8, 12}), (1, 0, set(range(2, 13))), (3, -1, {3, 6, 9, 12})],
)
def test_the_box(every: int, start: int, switches: set[int]) -> None:
    tx = zoo.switch_ema(MOMENTUM, 0.7, switch_every=every, switch_start=start)
    assert_follows_the_box(tx, 12 * [0.7], switches)


def test_the_period_may_be_a_schedule() -> None:
    tx = zoo.switch_ema(MOMENTUM, 0.7, switch_every=lambda count: jnp.where(count < 6, 2, 5))
    assert_follows_the_box(tx, 12 * [0.7], {2, 4, 6, 10})


def test_switching_always_scales_the_learning_rate() -> None:
    _, scaled, _ = walk(optax.sgd(0.1 * (1 - 0.7)))
    _, trained, averaged = walk(zoo.switch_ema(optax.sgd(0.1), 0.7, switch_every=1, switch_start=-1))
    assert_equal_trees((trained, averaged), (scaled, scaled))


@pytest.mark.parametrize("never", [{"switch_every": 10**10}, {"switch_every": 1, "switch_start": 100}])
def test_without_a_switch_it_is_with_ema(never: Any) -> None:
    ours, emas = walk(zoo.switch_ema(MOMENTUM, 0.7, **never)), walk(zoo.with_ema(MOMENTUM, 0.7))
    assert_equal_trees(ours, emas)


def test_the_decays_warm_up_counts_from_one() -> None:
    tx = zoo.switch_ema(MOMENTUM, switch_every=4, decay_fn=lambda t: 1 - 1 / jnp.asarray(t, float))
    assert_follows_the_box(tx, [1 - 1 / t for t in range(1, 13)], {4, 8, 12})


def test_a_decay_keeps_its_exactness_as_warm_up() -> None:
    slow = zoo.warmup_ema_decay(1 - 1e-9)
    start, steps = jnp.zeros(3), jnp.full((200_000, 1), -1.0)
    walked = [
        descend(tx, start, jnp.ones(3), steps)[1].ema
        for tx in (
            zoo.switch_ema(optax.sgd(1e-6), switch_every=10**6, decay_fn=slow),
            zoo.switch_ema(optax.sgd(1e-6), slow, switch_every=10**6),
        )
    ]
    np.testing.assert_array_equal(*walked)


def test_bfloat16_parameters_keep_a_float32_average() -> None:
    assert_float32_beside_bfloat16(zoo.switch_ema(optax.sgd(0.1), 0.7, switch_every=3), "ema")


def test_other_leaves_stay() -> None:
    assert_other_leaves_stay(zoo.switch_ema(only_w(optax.sgd(0.1)), 0.7, switch_every=2))


def test_a_switch_brings_the_weights_that_are_trained_down_to_the_average() -> None:
    """A valley of steep and flat directions, in which SGD bounces between the walls."""
    curvature = jnp.asarray(np.repeat([1.0, 0.05], 200), jnp.float32)
    noise = jax.random.normal(jax.random.key(0), (600, 400))

    def loss_after(tx: optax.GradientTransformation) -> tuple[float, float]:
        trained, _, evaluated = descend(tx, jnp.full(400, 3.0), curvature, noise)
        return tuple(float(jnp.sum(curvature * jnp.square(weights))) for weights in (trained, evaluated[-1]))

    trained, averaged = loss_after(zoo.with_ema(optax.sgd(0.5), 0.99))
    switched, same = loss_after(zoo.switch_ema(optax.sgd(0.5), 0.99, switch_every=100))
    np.testing.assert_allclose(switched, same, rtol=1e-4)
    assert switched < 0.05 * trained
    assert switched < 1.2 * averaged


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"switch_every": 0}, r"switch_ema: switch_every must be in \[1, inf\), got 0"),
        ({"switch_every": 5, "switch_start": -2}, r"switch_ema: switch_start must be in \[-1, inf\), got -2"),
        ({"switch_every": 5, "decay": 1.01}, r"switch_ema: decay must be in \[0, 1\], got 1.01"),
    ],
)
def test_what_cannot_be_is_refused(settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        zoo.switch_ema(optax.sgd(0.1), **settings)


def test_what_is_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"switch_ema: decay_fn must be a function of t = 1, 2, \.\.\., got 0.9"):
        zoo.switch_ema(optax.sgd(0.1), switch_every=5, decay_fn=0.9)
    with pytest.raises(TypeError, match="switch_ema: missing a required argument: 'switch_every'"):
        zoo.switch_ema(optax.sgd(0.1))
