"""The results file: strict JSON, read back unchanged, written in one piece."""

import dataclasses
import json
import os

import numpy as np
import pytest

from optax_zoo.race import results
from optax_zoo.race.errors import RaceError
from tests.race.records import make_race, make_result

LOSS = np.linspace(2.0, 0.1, 2 * 3 * 3).reshape(2, 3, 3)
LOSS[1, 2, 1:] = np.nan


def assert_same(left, right):
    assert left.task == right.task and left.settings == right.settings
    assert (left.versions, left.machine, left.names) == (right.versions, right.machine, right.names)
    for one, other in zip(left.optimizers, right.optimizers, strict=True):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            np.testing.assert_array_equal(a, b, err_msg=field.name)
            assert type(a) is type(b) and getattr(a, "dtype", None) == getattr(b, "dtype", None), field.name


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("accuracy", [1 - LOSS / 3, None])
def test_what_is_saved_is_read_back(tmp_path, accuracy):
    race = make_race(make_result("adamw", LOSS, accuracy=accuracy), make_result("lion", LOSS + 1))
    results.save(race, tmp_path / "results.json")
    assert_same(results.load(tmp_path / "results.json"), race)


def test_diverged_losses_are_null(tmp_path):
    results.save(make_race(make_result("adamw", LOSS)), tmp_path / "results.json")
    record = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse_constant)
    assert record["format"] == results.RaceResults.FORMAT
    assert record["optimizers"][0]["report_loss"][1][2][1:] == [None, None]


def test_results_grow_one_optimizer_at_a_time():
    race = make_race()
    assert race.names == ()
    grown = race.add(make_result("adamw", LOSS)).add(make_result("lion", LOSS))
    assert grown.names == ("adamw", "lion") and grown["lion"].name == "lion"
    with pytest.raises(KeyError, match="sgd"):
        grown["sgd"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results.save(make_race(make_result("adamw", LOSS)), path)
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        results.save(make_race(), path)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_another_version_is_named(tmp_path):
    path = tmp_path / "results.json"
    results.save(make_race(), path)
    path.write_text(path.read_text().replace(results.RaceResults.FORMAT, "optax-zoo race 0"))
    with pytest.raises(RaceError, match=r"has format 'optax-zoo race 0' but this version reads 'optax-zoo race 1'"):
        results.load(path)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3", '{"other": 1}', b"\xff\xfe"])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RaceError, match=r"results\.json (is not the results file of a race|has format None)"):
        results.load(path)


LACKING = object()
ADAMW = ("optimizers", 0)
DAMAGES = [
    (("task",), LACKING, "task is missing"),
    (("settings", "seeds"), LACKING, "settings.seeds is missing"),
    (("optimizers",), LACKING, "optimizers is missing"),
    ((*ADAMW, "best"), LACKING, "optimizers[0].best is missing"),
    ((*ADAMW, "mood"), "good", "optimizers[0].mood is unknown"),
    (("task",), "digits", "task is 'digits', not an object"),
    (("task", "name"), 3, "task.name is 3, not str"),
    (("versions",), None, "versions is None, not an object"),
    (("machine", "cpus"), 2, "machine.cpus is 2, not str"),
    (("settings", "seeds"), 3, "settings.seeds is 3, not a list"),
    (("settings", "seeds", 1), "1", "settings.seeds[1] is '1', not int"),
    (("settings", "steps"), 2.5, "settings.steps is 2.5, not int"),
    (("optimizers",), {}, "optimizers is {}, not a list"),
    ((*ADAMW, "best"), None, "optimizers[0].best is None, not int"),
    ((*ADAMW, "best"), True, "optimizers[0].best is True, not int"),
    ((*ADAMW, "best"), 2, "best of adamw is 2, not in [0, 2)"),
    ((*ADAMW, "wall_seconds"), "3", "optimizers[0].wall_seconds is '3', not float"),
    ((*ADAMW, "train_loss"), None, "optimizers[0].train_loss is None, not a list"),
    ((*ADAMW, "report_loss", 1), LACKING, "report_loss of adamw has shape (1, 3, 3), not (2, 3, 3)"),
    ((*ADAMW, "report_loss", 1, 0, 2), LACKING, "optimizers[0].report_loss is not a regular array of float64"),
    ((*ADAMW, "report_loss", 1, 0, 2), "0.1", "optimizers[0].report_loss is not a regular array of float64"),
    ((*ADAMW, "diverged", 0), [False, False], "optimizers[0].diverged is not a regular array of bool"),
    ((*ADAMW, "diverged", 0, 0), None, "optimizers[0].diverged is not a regular array of bool"),
    ((*ADAMW, "accuracy"), [], "accuracy of adamw has shape (0,), not (2, 3, 3)"),
    ((*ADAMW, "learning_rates"), [0.1], "learning_rates of adamw has shape (1,), not (2,)"),
    ((*ADAMW, "learning_rates"), [None, 0.1], "learning_rates of adamw do not grow from above 0"),
    ((*ADAMW, "eval_steps"), [0, 20, 10], "eval_steps of adamw do not grow from 0 to 20"),
    ((*ADAMW, "eval_steps"), [0, 10], "train_loss of adamw has shape (2, 3, 3), not (2, 3, 2)"),
    ((*ADAMW, "eval_steps"), [], "train_loss of adamw has shape (2, 3, 3), not (2, 3, 0)"),
]


@pytest.mark.parametrize(("place", "value", "told"), DAMAGES, ids=[told for *_, told in DAMAGES])
def test_a_damaged_file_is_refused(tmp_path, place, value, told):
    path = tmp_path / "results.json"
    results.save(make_race(make_result("adamw", LOSS)), path)
    record = json.loads(path.read_text())
    *outer, last = place
    inner = record
    for key in outer:
        inner = inner[key]
    if value is LACKING:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(record))
    with pytest.raises(RaceError) as refused:
        results.load(path)
    assert str(refused.value) == f"{path} is damaged: {told}"


@pytest.mark.parametrize("place", ["wall_seconds", "eval_steps"])
def test_a_number_that_does_not_fit_is_refused(tmp_path, place):
    path = tmp_path / "results.json"
    results.save(make_race(make_result("adamw", LOSS)), path)
    record = json.loads(path.read_text())
    record["optimizers"][0][place] = 10**400 if place == "wall_seconds" else [0, 10, 10**400]
    path.write_text(json.dumps(record))
    with pytest.raises(RaceError, match=r"is damaged: .*too large"):
        results.load(path)


@pytest.mark.parametrize("name", ["step_seconds", "relative_step_time"])
def test_times_that_were_not_measured_are_read_back(tmp_path, name):
    race = make_race(dataclasses.replace(make_result("adamw", LOSS), **{name: float("nan")}))
    results.save(race, tmp_path / "results.json")
    assert_same(results.load(tmp_path / "results.json"), race)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RaceError, match=r"cannot read .*: No such file"):
        results.load(tmp_path / "results.json")
