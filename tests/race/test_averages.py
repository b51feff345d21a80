"""Raw against averaged weights: the averages leave the run as it is, and the figures are theirs."""

import dataclasses
import io
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.text import Text
from rich.console import Console

import optax_zoo
from optax_zoo._core.averages import Average
from optax_zoo.cli import main
from optax_zoo.race import averages, averages_picture, averages_report, drawing, results, runner, tasks
from optax_zoo.race.averages_results import RAW, AveragesResults, AveragesSettings, Watched, curves, standings
from optax_zoo.race.errors import RaceError

STEPS = 22
TINY = ["race", "--averages", "--steps", "3", "--seeds", "2", "--learning-rates", "0.01,0.1"]
WATCHING = {"with_ema": "decay=0.9", "with_swa": "start=2, freq=1"}


class Silent:
    def __init__(self):
        self.kept = []

    def starts(self, name):
        pass

    def advances(self, name, step, best_loss):
        pass

    def keeps(self, name, outcome, seconds):
        self.kept.append((name, outcome))


def wrappers_with_an_average():
    params = {"w": jnp.zeros((2, 2))}
    papers = [paper for paper in optax_zoo.papers().values() if paper.kind == "wrapper"]
    return [paper for paper in papers if isinstance(paper.build(1e-3).init(params), Average)]


@pytest.mark.parametrize("paper", wrappers_with_an_average(), ids=lambda paper: paper.name)
def test_only_wrappers_that_leave_all_updates_alone_watch(paper):
    arguments = {**paper.example, **paper.probe}
    alone, watched = optax.sgd(0.1), paper.make(optax.sgd(0.1), **arguments)
    watched = optax.with_extra_args_support(watched)
    params = {"w": jnp.arange(1.0, 5.0).reshape(2, 2)}
    state, inner = watched.init(params), alone.init(params)
    same = True
    for _ in range(12):
        updates, state = watched.update(params, state, params, value=jnp.float32(1.0))
        expected, inner = alone.update(params, inner, params)
        same &= np.array_equal(updates["w"], expected["w"])
        params = optax.apply_updates(params, updates)
    assert (paper.name in averages.averages(600)) == (same and paper.scaled is not None)


def test_the_averages_fit_the_length_of_the_run():
    for steps in (1, 3, 60, 600):
        found = averages.averages(steps)
        assert {"with_ema", "with_polyak", "with_sma", "with_swa", "with_lawa"} <= set(found)
        assert all(0 <= found["with_swa"][name] <= max(1, 0.75 * steps) for name in ("start", "freq"))
    assert averages.described({"start": 450, "freq": 15}) == "start=450, freq=15"


@pytest.fixture(scope="module")
def problem():
    return dataclasses.replace(tasks.load("digits"), batch_size=16)


@pytest.fixture(scope="module")
def settings(problem):
    watching = {name: averages.described(known) for name, known in averages.averages(STEPS).items()}
    plain = results.Settings("digits", problem.fingerprint, STEPS, 16, (0, 7), 0.01, (1.0,), (0.003, 0.01), "decay")
    return AveragesSettings(**vars(plain), optimizer="adamw", averages=watching)


@pytest.fixture(scope="module")
def watched(problem, settings):
    return averages.run(problem, optax_zoo.paper("adamw"), settings, "decay", Silent())


def test_the_raw_weights_are_those_of_a_race(problem, settings, watched):
    class Deaf:
        starts = advances = finishes = staticmethod(lambda *_: None)

    alone = runner.run(runner.Track(problem, settings), optax_zoo.paper("adamw"), Deaf())
    assert watched.best == alone.best
    np.testing.assert_array_equal(watched.learning_rates, alone.learning_rates)
    np.testing.assert_array_equal(watched.eval_steps, alone.eval_steps)
    np.testing.assert_allclose(watched.report_loss[RAW], alone.report_loss[alone.best], rtol=1e-3)


@pytest.mark.parametrize("name", ["with_ema", "with_sma", "with_swa", "with_lawa"])
def test_an_average_is_the_one_of_a_run_of_its_own(problem, watched, name):
    rate = runner.schedule("decay", jnp.float32(watched.learning_rates[watched.best]), STEPS, False)
    tx = optax_zoo.create(name, optax.adamw(rate), **averages.averages(STEPS)[name])
    init_key, _ = jax.random.split(jax.random.key(7))
    params = problem.init(init_key)
    state, step = tx.init(params), jax.jit(optax_zoo.train_step(problem.loss, tx))
    for index in problem.batches(7, STEPS):
        params, state, _ = step(params, state, *problem.take(problem.train, index))
    loss = problem.loss(optax_zoo.eval_params(state, params), *problem.held["report"])
    np.testing.assert_allclose(watched.report_loss[name][1, -1], loss, rtol=1e-3)
    assert abs(watched.report_loss[RAW][1, -1] - loss) > 0.01 * loss


def test_schedules_are_the_constant_one_and_the_one_asked_for(settings):
    assert settings.schedules == ("constant", "decay")
    assert dataclasses.replace(settings, schedule="wsd").schedules == ("constant", "wsd")
    assert dataclasses.replace(settings, schedule="constant").schedules == ("constant",)


def make_run(schedule, losses, diverged=()):
    """Losses by weights, [S, E]."""
    report = {name: np.asarray(values, float) for name, values in losses.items()}
    return Watched(
        schedule=schedule,
        learning_rates=np.array([0.1, 0.2, 0.4]),
        best=1,
        eval_steps=np.array([0, 10, 20]),
        report_loss=report,
        diverged={name: np.full(3, name in diverged) for name in report},
        wall_seconds=3.0,
    )


def seen(schedule, raw, ema, swa, diverged=()):
    """Falling curves of three seeds to the last losses given."""
    spread = np.array([[0.0], [0.001], [0.003]])
    ends = {RAW: raw, "with_ema": ema, "with_swa": swa}
    tilt = {RAW: 1.0, "with_ema": 1.1, "with_swa": 0.9}
    return make_run(schedule, {name: [2.3, 2 * end, end] + tilt[name] * spread for name, end in ends.items()}, diverged)


def make_results(*runs, schedule="decay"):
    settings = AveragesSettings(
        "digits", "abc", 20, 8, (0, 1, 2), 0.1, (0.5, 1.0, 2.0), None, schedule, optimizer="sgd", averages=WATCHING
    )
    task = results.Task("digits", "handwritten digits", "nats")
    return AveragesResults(task, settings, {"jax": "0.10.2"}, {"cpus": "2 CPUs"}, runs)


TYPICAL = make_results(seen("constant", 0.3, 0.2, 0.25), seen("decay", 0.1, 0.12, 0.11))
EVERY = {
    "typical": TYPICAL,
    "one schedule": make_results(seen("constant", 0.3, 0.2, 0.25), schedule="constant"),
    "diverged": make_results(seen("constant", np.nan, np.nan, 0.25, diverged=(RAW, "with_ema"))),
    "all diverged": make_results(seen("constant", np.nan, np.nan, np.nan, diverged=(RAW, *WATCHING))),
}
every = pytest.mark.parametrize("compared", EVERY.values(), ids=EVERY)


def test_standings_are_tested_against_the_raw_weights():
    rows = standings(TYPICAL["constant"])
    assert list(rows) == ["with_ema", "with_swa", RAW]
    assert rows[RAW].comparison is None
    assert rows["with_ema"].comparison.verdict == "better"
    assert rows["with_ema"].loss == pytest.approx(0.2 + 1.1 * 0.004 / 3)
    assert rows["with_ema"].comparison.difference == pytest.approx(-0.1 + 0.1 * 0.004 / 3)
    assert standings(TYPICAL["decay"])["with_ema"].comparison.verdict == "worse"


def test_what_diverged_counts_as_untrained_and_comes_last():
    run = EVERY["diverged"]["constant"]
    np.testing.assert_array_equal(curves(run)[RAW][:, -1], run.report_loss[RAW][:, 0])
    rows = standings(run)
    assert next(iter(rows)) == "with_swa" and rows[RAW].diverged and not rows["with_swa"].diverged


@every
def test_what_is_saved_is_read_back(tmp_path, compared):
    results.save(compared, tmp_path / "averages.json")
    again = results.read(AveragesResults, tmp_path / "averages.json")
    assert (again.task, again.settings, again.versions, again.machine) == (
        compared.task,
        compared.settings,
        compared.versions,
        compared.machine,
    )
    assert again.names == compared.names
    for one, other in zip(again.runs, compared.runs, strict=True):
        assert list(one.report_loss) == list(other.report_loss)
        jax.tree.map(np.testing.assert_array_equal, dataclasses.asdict(one), dataclasses.asdict(other))


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("schedule",), "cosine", "cosine is none of its schedules"),
        (("best",), 3, "best of constant is 3, not in [0, 3)"),
        (("eval_steps",), [0, 10, 10], "eval_steps of constant do not grow from 0 to 20"),
        (("report_loss", "with_ema"), [[1.0]], "report_loss of constant, with_ema, has shape (1, 1), not (3, 3)"),
        (("diverged",), {"raw": [False] * 3}, "diverged of constant is of raw, not of raw, with_ema, with_swa"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, place, value, told):
    path = tmp_path / "averages.json"
    results.save(TYPICAL, path)
    record = json.loads(path.read_text())
    *outer, last = place
    inner = record["runs"][0]
    for key in outer:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(record))
    with pytest.raises(RaceError) as refused:
        results.read(AveragesResults, path)
    assert str(refused.value) == f"{path} is damaged: {told}"


def printed(compared, width):
    stream = io.StringIO()
    averages_report.print_table(compared, Console(file=stream, width=width))
    return stream.getvalue()


def cells(compared):
    lines = [line for line in averages_report.markdown(compared).splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(heading, row, strict=True)) for row in rows}


@every
def test_the_page_holds_the_numbers_of_the_standings(compared):
    table = cells(compared)
    assert list(table) == list(standings(compared.runs[0]))
    for run in compared.runs:
        for name, row in standings(run).items():
            cell = table[name][f"{run.schedule}: final loss (nats)"]
            if row.diverged:
                assert cell == "diverged"
            else:
                assert [float(x) for x in re.findall(r"[\d.]+", cell)] == [
                    pytest.approx(row.loss, abs=5.1e-4),
                    pytest.approx(row.loss_spread, abs=5.1e-4),
                ]
            assert (table[name][f"{run.schedule}: against raw"] == "reference") == (name == RAW)


@every
@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_tells_what_the_page_tells(compared, width):
    lines = printed(compared, width).splitlines()
    assert all(len(line) <= width for line in lines) and "…" not in "".join(lines)
    shown = " ".join(" ".join(lines).split())
    words = [
        word for row in cells(compared).values() for cell in row.values() for word in cell.replace(",", "").split()
    ]
    assert all(word in shown for word in words)
    assert "0.2 with constant" in shown and "with_swa(start=2, freq=1): Averaging Weights Leads to Wider" in shown


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_the_picture_names_what_it_shows():
    figure = averages_picture.picture(TYPICAL)
    assert {"raw  0.301", "with_ema  0.201", "with_swa  0.251", "raw  0.101", "with_ema  0.121"} <= set(texts(figure))
    assert "constant: with_ema ends lowest, clearly below raw" in texts(figure)
    assert "decay: no average below raw" in texts(figure)
    assert len(figure.axes) == 2 and figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert "constant: every seed diverged" in texts(averages_picture.picture(EVERY["all diverged"]))


def test_an_average_is_drawn_from_where_it_leaves_the_raw_weights():
    raw = np.array([[2.3, 1.0, 0.5]] * 3)
    late = np.array([[2.3, 1.0, 0.4]] * 3)
    early = np.array([[2.3, 1.5, 0.6]] * 3)
    (axes,) = averages_picture.picture(
        make_results(make_run("constant", {RAW: raw, "with_ema": late, "with_swa": early}), schedule="constant")
    ).axes
    look = averages_picture.looks((RAW, *WATCHING))
    drawn = {line.get_color(): line.get_xdata() for line in axes.lines if line.get_transform() == axes.transData}
    np.testing.assert_array_equal(drawn[look[RAW].colour], [0, 10, 20])
    np.testing.assert_array_equal(drawn[look["with_ema"].colour], [10, 20])
    np.testing.assert_array_equal(drawn[look["with_swa"].colour], [0, 10, 20])


def test_raw_is_grey_and_every_average_has_a_look_of_its_own():
    names = [RAW, *(f"average_{i}" for i in range(20))]
    look = averages_picture.looks(names)
    assert len({(style.colour, style.dashes) for style in look.values()}) == len(names)
    assert len({look[name].colour for name in names[1:8]}) == len(drawing.COLOURS)
    assert look[RAW].colour not in drawing.COLOURS


def test_labels_are_inside_the_picture_and_apart():
    names = ("with_ema", "with_a_long_name_indeed", "with_swa")
    ends = {RAW: 0.3} | {name: 0.29 + 0.001 * i for i, name in enumerate(names)}
    runs = [
        make_run(kind, {name: [[2.3, 1.0, end]] * 3 for name, end in ends.items()}) for kind in ("constant", "decay")
    ]
    compared = make_results(*runs)
    settings = dataclasses.replace(compared.settings, averages=dict.fromkeys(names, ""))
    figure = averages_picture.picture(dataclasses.replace(compared, settings=settings))
    for axes, end in zip(figure.axes, (figure.axes[1].get_window_extent().x0, figure.bbox.width), strict=True):
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
        assert len(boxes) == 4 and all(box.x1 < end for box in boxes)
        assert all(lower.y1 < upper.y0 for lower, upper in itertools.pairwise(boxes))


@every
def test_the_report_is_written_and_refers_to_what_is_there(tmp_path, compared):
    page, picture = averages_report.write_report(compared, tmp_path)
    assert (page, picture) == (tmp_path / "averages.md", tmp_path / "averages.png")
    assert re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) == [picture.name]
    assert picture.read_bytes().startswith(b"\x89PNG")


def sentence(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def run_at_once(problem, paper, settings, schedule, watcher):
    """Losses of no training at all."""
    losses = {name: np.tile([2.3, 1.0, 0.5, 0.3 + 0.01 * i], (2, 1)) for i, name in enumerate(settings.weights)}
    watcher.keeps(schedule, "at once", 0.0)
    return Watched(
        schedule=schedule,
        learning_rates=runner.learning_rates(paper, settings),
        best=0,
        eval_steps=np.arange(4),
        report_loss=losses,
        diverged={name: np.zeros(2, bool) for name in losses},
        wall_seconds=0.0,
    )


def test_the_command_leaves_the_race_alone_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    (tmp_path / "results.json").write_text("of a race")
    arguments = [*TINY, "--out", str(tmp_path)]

    def stop_at_decay(problem, paper, settings, schedule, watcher):
        if schedule == "decay":
            raise KeyboardInterrupt
        return run_at_once(problem, paper, settings, schedule, watcher)

    monkeypatch.setattr(averages, "run", stop_at_decay)
    assert main(arguments) == 130
    told = sentence(capsys)
    assert "interrupted; 1 finished schedules are kept in" in told and told.endswith("--resume")
    assert results.read(AveragesResults, tmp_path / "averages.json").names == ("constant",)

    def only_decay(problem, paper, settings, schedule, watcher):
        assert schedule == "decay"
        return run_at_once(problem, paper, settings, schedule, watcher)

    monkeypatch.setattr(averages, "run", only_decay)
    assert main([*arguments, "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "adamw with constant and decay: 4 runs of 3 steps each" in shown and "and 1 picture" in shown
    done = results.read(AveragesResults, tmp_path / "averages.json")
    assert done.names == ("constant", "decay") and done.settings.optimizer == "adamw"
    assert (tmp_path / "results.json").read_text() == "of a race"
    assert {"averages.md", "averages.png"} <= {path.name for path in tmp_path.iterdir()}

    monkeypatch.setattr(averages, "run", None)
    assert main([*arguments, "--resume"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--resume", "--optimizers", "sgd"]) == 1
    told = sentence(capsys)
    assert "cannot resume" in told and "optimizer adamw, now sgd" in told


def test_a_report_that_cannot_be_written_leaves_the_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(averages, "run", run_at_once)
    (tmp_path / "averages.md").mkdir()
    assert main([*TINY, "--out", str(tmp_path)]) == 1
    assert sentence(capsys) == f"optax-zoo race: cannot write to {tmp_path}: Is a directory; averages.json is complete"
    assert results.read(AveragesResults, tmp_path / "averages.json").names == ("constant", "decay")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--averages", "adamm"], "'adamm': no such method; did you mean 'adam"),
        (["--averages", "with_ema"], "with_ema: averages its parameters itself"),
        (["--averages", "--optimizers", "schedule_free_sgd"], "schedule_free_sgd: averages its parameters itself"),
        (["--averages", "sgd", "--optimizers", "lion"], "--averages with a name and --optimizers exclude each other"),
        (["--averages", "--optimizers", "sgd,lion"], "--averages takes one optimizer, got sgd, lion"),
        (["--averages", "--optimizers", "adamw,lion"], "--averages takes one optimizer, got adamw, lion"),
    ],
)
def test_what_it_cannot_watch_is_told_in_one_sentence(tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(averages, "run", None)
    assert main(["race", *arguments]) == 1
    assert told in sentence(capsys)
    assert list(tmp_path.iterdir()) == []
