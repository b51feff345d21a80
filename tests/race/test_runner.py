"""Training in a race: all runs at once give what each gives alone, and twice the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo
from optax_zoo.race import runner, tasks
from optax_zoo.race.results import RaceResults, Settings, Task

STEPS = 22
CURVES = ("train_loss", "selection_loss", "report_loss", "accuracy")


class Silent:
    def __init__(self):
        self.events = []

    def starts(self, name):
        self.events.append(("starts", name))

    def advances(self, name, step, best_loss):
        self.events.append((name, step))

    def finishes(self, result):
        self.events.append(("finishes", result.name))


@pytest.fixture(scope="module")
def problem():
    return dataclasses.replace(tasks.load("digits"), batch_size=16)


def make_track(problem, rates=(0.01, 0.5, 1e30), seeds=(0, 7), steps=STEPS):
    settings = Settings("digits", problem.fingerprint, steps, 16, seeds, 0.01, (1.0,), rates, "decay")
    return runner.Track(problem, settings)


@pytest.fixture(scope="module")
def track(problem):
    return make_track(problem)


@pytest.fixture(scope="module")
def sgd(track):
    return runner.run(track, optax_zoo.paper("sgd"), Silent())


def train_alone(problem, tx, seed, steps=STEPS):
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = problem.init(init_key)
    state = tx.init(params)
    step = jax.jit(optax_zoo.train_step(problem.loss, tx))
    for count, index in enumerate(problem.batches(seed, steps)):
        batch = problem.take(problem.train, index)
        params, state, _ = step(params, state, *batch, key=jax.random.fold_in(step_key, count))
    return optax_zoo.eval_params(state, params)


@pytest.mark.parametrize("name", ["sgd", "with_ema"])
def test_all_at_once_is_each_alone(problem, track, sgd, name):
    paper = optax_zoo.paper(name)
    result = sgd if name == "sgd" else runner.run(track, paper, Silent())
    averages = name == "with_ema"
    for (i, rate), (j, seed) in [((0, 0.01), (1, 7)), ((1, 0.5), (0, 0))]:
        tx = paper.build(runner.schedule("decay", jnp.float32(rate), STEPS, averages))
        params = train_alone(problem, tx, seed)
        for split in tasks.SPLITS:
            loss = getattr(result, f"{split}_loss")[i, j, -1]
            np.testing.assert_allclose(loss, problem.loss(params, *problem.held[split]), rtol=1e-4)
        right = problem.accuracy(params, *problem.held["report"])
        np.testing.assert_allclose(result.accuracy[i, j, -1], right, atol=1 / 400 + 1e-6)


def test_a_method_that_asks_for_the_peak_of_the_rate_gets_it(problem, track):
    def at_peak(learning_rate, peak=1e30):
        return optax.sgd(peak)

    paper = dataclasses.replace(optax_zoo.paper("sgd"), make=at_peak, peak_argument="peak")
    result = runner.run(track, paper, Silent())
    params = train_alone(problem, optax.sgd(0.5), 7)
    np.testing.assert_allclose(result.report_loss[1, 1, -1], problem.loss(params, *problem.held["report"]), rtol=1e-4)


def test_twice_gives_the_same_bits(problem, sgd):
    again = runner.run(make_track(problem), optax_zoo.paper("sgd"), Silent())
    for name in CURVES:
        np.testing.assert_array_equal(getattr(sgd, name), getattr(again, name))


def test_all_optimizers_start_alike_and_seeds_differ(track, sgd):
    adamw = runner.run(track, optax_zoo.paper("adamw"), Silent())
    for name in CURVES:
        start, other = getattr(sgd, name)[..., 0], getattr(adamw, name)[..., 0]
        np.testing.assert_array_equal(start, other)
        np.testing.assert_array_equal(start[0], start[1])
    assert sgd.report_loss[0, 0, 0] != sgd.report_loss[0, 1, 0]
    assert adamw.relative_step_time == 1.0 and adamw.state_bytes_per_parameter == pytest.approx(8.0, abs=0.01)
    assert sgd.state_bytes_per_parameter == pytest.approx(0.0, abs=0.01)


def test_evaluations_cover_all_steps(sgd):
    assert sgd.eval_steps[0] == 0 and sgd.eval_steps[-1] == STEPS
    assert (np.diff(sgd.eval_steps) > 0).all()
    assert sgd.report_loss.shape == (3, 2, len(sgd.eval_steps))
    assert sgd.step_seconds > 0 and sgd.relative_step_time > 0 and sgd.wall_seconds > 0


def test_training_lowers_the_loss(sgd):
    assert (sgd.report_loss[1, :, -1] < 0.5 * sgd.report_loss[1, :, 0]).all()


def test_a_diverged_rate_is_marked_and_never_best(sgd):
    np.testing.assert_array_equal(sgd.diverged, [[False, False], [False, False], [True, True]])
    assert sgd.best == 1
    assert np.isfinite(sgd.report_loss[:2]).all() and np.isnan(sgd.report_loss[2, :, -1]).all()


def test_the_watcher_sees_every_chunk(problem):
    watcher, kept = Silent(), []
    track = make_track(problem, rates=(0.1,), seeds=(0,), steps=3)
    empty = no_results(problem, track.settings)
    results = runner.race(track, [optax_zoo.paper("adamw")], empty, kept.append, watcher)
    steps = [("adamw", 1), ("adamw", 2), ("adamw", 3)]
    assert watcher.events == [("starts", "adamw"), *steps, ("finishes", "adamw")]
    assert [done.names for done in kept] == [("adamw",)] and results.names == ("adamw",)


def test_finished_optimizers_are_not_run_again(problem, track, sgd):
    watcher = Silent()
    results = no_results(problem, track.settings).add(sgd)
    assert runner.race(track, [optax_zoo.paper("sgd")], results, refuse, watcher) is results
    assert watcher.events == []


def refuse(results):
    raise AssertionError("nothing was to be kept")


def no_results(problem, settings):
    return RaceResults(Task(problem.name, problem.description, problem.loss_unit), settings, {}, {})


@pytest.mark.parametrize(
    ("kind", "averages", "shape"),
    [
        ("decay", False, lambda t: min(1.0, (t + 1) / 5) * (1 - t / 100)),
        ("decay", True, lambda t: min(1.0, (t + 1) / 5)),
        ("constant", False, lambda t: min(1.0, (t + 1) / 5)),
    ],
)
def test_schedules_follow_their_description(kind, averages, shape):
    rate = runner.schedule(kind, jnp.float32(0.3), 100, averages)
    got = [float(rate(step)) for step in range(100)]
    np.testing.assert_allclose(got, [0.3 * shape(t) for t in range(100)], rtol=1e-5)


def test_learning_rates_follow_the_record_or_the_user(track):
    grid = dataclasses.replace(track.settings, learning_rates=None, grid=(2.0, 0.5), base_learning_rate=0.01)
    sgd = optax_zoo.paper("sgd")
    relative = sgd.relative_learning_rate
    np.testing.assert_allclose(runner.learning_rates(sgd, grid), [0.005 * relative, 0.02 * relative])
    np.testing.assert_array_equal(runner.learning_rates(sgd, track.settings), [0.01, 0.5, 1e30])


def test_text_is_learnt(tmp_path):
    path = tmp_path / "abc.txt"
    path.write_bytes(b"abcdefghij" * 1000)
    problem = tasks.load("text", path)
    settings = Settings("text", problem.fingerprint, 12, 16, (0,), 0.01, (1.0,), (0.01,), "constant")
    result = runner.run(runner.Track(problem, settings), optax_zoo.paper("adamw"), Silent())
    assert result.accuracy is None
    assert result.report_loss[0, 0, 0] > 4.0
    assert result.report_loss[0, 0, -1] < 0.5 * result.report_loss[0, 0, 0]


def test_what_a_race_cannot_supply_is_known():
    paper = optax_zoo.paper("adamw")
    assert runner.missing_arguments(paper) == ()
    outputs = dataclasses.replace(paper, needs=("params", "outputs_fn", "value"))
    assert runner.missing_arguments(outputs) == ("outputs_fn",)
