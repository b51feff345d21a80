"""SWAD: the segments of the run, the valley of the validation loss, and the mean over it."""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.papers.merging.recorded import Recorded
from tests.support import problem

RECORDED = Recorded("swad.basic")
SEGMENTS, LOSSES = RECORDED.arrays["in/segments"], RECORDED.arrays["in/val_loss"]


def test_the_authors_valley() -> None:
    with jax.enable_x64(True):
        average, counts, start, end = zoo.swad(SEGMENTS, LOSSES, n_converge=3, n_tolerance=6, tolerance_ratio=0.3)
        clean, once, *ends = zoo.swad(list(SEGMENTS), list(LOSSES), reference_counts=False)
    np.testing.assert_allclose(average, RECORDED.arrays["out/average"], rtol=1e-12)
    np.testing.assert_array_equal(counts, RECORDED.arrays["out/counts"])
    assert [start, end] == ends == [RECORDED.arrays["out/start_index"], RECORDED.arrays["out/end_index"]]
    np.testing.assert_allclose(clean, RECORDED.arrays["out/average_clean"], rtol=1e-12)
    assert once == [int(start <= i <= end) for i in range(len(LOSSES))]


def streamed(losses: Any, n_converge: int, n_tolerance: int, tolerance_ratio: float) -> list[int]:
    """The authors' procedure, fed one interval at a time: numbers of the intervals as they enter the mean."""
    recent: deque[int] = deque(maxlen=n_converge)
    window: deque[int] = deque(maxlen=n_tolerance)
    best, threshold, entered = -1, 0.0, []
    for i, _ in enumerate(losses):
        recent.append(i)
        window.append(i)
        if best < 0:
            values = [losses[j] for j in recent]
            if len(recent) == n_converge and int(np.argmin(values)) == 0:
                best, threshold = recent[0], float(np.mean(values)) * (1 + tolerance_ratio)
                if n_tolerance < n_converge:
                    entered += list(recent)[1 : 1 + n_converge - n_tolerance]
                elif n_tolerance > n_converge:
                    queue = list(window)[: n_tolerance - n_converge + 1]
                    while any(losses[j] > threshold for j in queue):
                        queue.pop(0)
                    entered += queue[1:]
        elif window[0] >= best:
            if min(losses[j] for j in window) > threshold:
                return entered or [best]
            entered.append(window[0])
    if best < 0:
        return []
    window.popleft()
    while window and min(losses[j] for j in window) <= threshold:
        entered.append(window.popleft())
    return entered or [best]


def valleys() -> list[np.ndarray]:
    """Losses that fall, stay and rise, with noise."""
    shape = np.concatenate([np.linspace(3, 1, 9), np.full(8, 1.0), np.linspace(1, 3, 12)])
    return [np.abs(shape * (1 + 0.1 * np.random.default_rng(i).normal(size=shape.size))) for i in range(5)]


@pytest.mark.parametrize("n_converge", [1, 3, 5])
@pytest.mark.parametrize("n_tolerance", [1, 3, 4, 9])
@pytest.mark.parametrize("tolerance_ratio", [0.0, 0.3])
def test_every_run_enters_interval_by_interval(n_converge: int, n_tolerance: int, tolerance_ratio: float) -> None:
    settings = {"n_converge": n_converge, "n_tolerance": n_tolerance, "tolerance_ratio": tolerance_ratio}
    for run in valleys():
        for losses in (run, run[::-1], run[:14], run[8:14]):
            segments = np.arange(len(losses), dtype=np.float32)
            entered = streamed(losses, **settings)
            if not entered:
                with pytest.raises(ValueError, match="swad: the validation loss has not converged"):
                    zoo.swad(segments, losses, **settings)
                continue
            average, counts, start, end = zoo.swad(segments, losses, **settings)
            assert counts == [entered.count(i) for i in range(len(losses))]
            assert (start, end) == (entered[0], entered[-1])
            np.testing.assert_allclose(average, np.mean(entered), rtol=1e-6)


def training(tx: Any, steps: int, length: int) -> tuple[np.ndarray, list[Any]]:
    """The points, and the segments of `length` steps."""
    params, gradients = problem(steps)
    params, segments, points = jax.tree.map(jnp.asarray, params), [], []
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(steps):
        updates, state = update({name: g[t] for name, g in gradients.items()}, state, params)
        params = optax.apply_updates(params, updates)
        points.append(params)
        if (t + 1) % length == 0:
            segments.append(zoo.eval_params(state, params))
            state = zoo.next_segment(state)
            jax.tree.map(np.testing.assert_array_equal, zoo.eval_params(state, params), params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *points), segments


@pytest.mark.parametrize(
    "nest", [lambda tx: tx, lambda tx: optax.chain(optax.identity(), optax.masked(tx, {"w": True, "b": True}))]
)
def test_segments_are_means_of_their_intervals(nest: Any) -> None:
    with jax.enable_x64(True):
        points, segments = training(nest(zoo.swad_segments(optax.sgd(0.1))), 12, 4)
    for i, segment in enumerate(segments):
        for name, leaf in segment.items():
            np.testing.assert_allclose(leaf, points[name][4 * i : 4 * i + 4].mean(axis=0), rtol=1e-12)


def test_the_mean_of_the_segments_is_the_mean_of_the_valleys_points() -> None:
    with jax.enable_x64(True):
        points, segments = training(zoo.swad_segments(optax.sgd(0.1)), 40, 4)
        losses = [5, 4, 3, 1.0, 1.2, 1.1, 1.1, 1.2, 5, 6]
        average, counts, start, end = zoo.swad(segments, losses, n_tolerance=2, reference_counts=False)
    assert sum(counts) == end - start + 1 and 3 <= start < end <= 7
    for name, leaf in average.items():
        np.testing.assert_allclose(leaf, points[name][4 * start : 4 * end + 4].mean(axis=0), rtol=1e-12)


def test_bfloat16_parameters_keep_a_float32_mean() -> None:
    state = zoo.swad_segments(optax.sgd(0.1)).init({"w": jnp.ones(2, jnp.bfloat16)})
    assert state.mean["w"].dtype == jnp.float32


def test_what_cannot_be_is_refused() -> None:
    segments = np.zeros((4, 2), np.float32)
    for settings, sentence in (
        ({"n_converge": 0}, r"n_converge must be in \[1, inf\), got 0"),
        ({"n_tolerance": 0}, r"n_tolerance must be in \[1, inf\), got 0"),
        ({"tolerance_ratio": -0.1}, r"tolerance_ratio must be in \[0, inf\), got -0.1"),
    ):
        with pytest.raises(ValueError, match=f"swad: {sentence}"):
            zoo.swad(segments, [1, 1, 1, 1], **settings)
    with pytest.raises(ValueError, match="swad: needs one validation loss for each of 4 segments, got 3"):
        zoo.swad(segments, [1, 1, 1])
    with pytest.raises(ValueError, match=r"swad: val_losses\[2\] is NaN"):
        zoo.swad(segments, [1, 1, np.nan, 1])
    with pytest.raises(ValueError, match="none of its 4 values is the least of n_converge=3 in a row"):
        zoo.swad(segments, [4, 3, 2, 1])
    with pytest.raises(ValueError, match="swad: segment 1 has NaN at the root"):
        zoo.swad([*segments[:1], np.full(2, np.nan, np.float32), *segments[2:]], [1, 1, 1, 1], n_tolerance=3)
    with pytest.raises(ValueError, match="next_segment: found no swad_segments in the optimizer state"):
        zoo.next_segment(optax.adam(0.1).init(jnp.ones(2)))
