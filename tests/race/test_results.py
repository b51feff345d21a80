"""The results file: strict JSON, read back unchanged, written in one piece."""

import dataclasses
import json
import os

import numpy as np
import pytest

from optax_zoo.race import results
from optax_zoo.race.errors import RaceError
from tests.race.records import make_race, make_result

LOSS = np.linspace(2.0, 0.1, 2 * 3 * 4).reshape(2, 3, 4)
LOSS[1, 2, 2:] = np.nan


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
    assert record["format"] == results.FORMAT
    assert record["optimizers"][0]["report_loss"][1][2][2:] == [None, None]


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
    path.write_text(path.read_text().replace(results.FORMAT, "optax-zoo race 0"))
    with pytest.raises(RaceError, match=r"has format 'optax-zoo race 0' but this version reads 'optax-zoo race 1'"):
        results.load(path)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3", '{"other": 1}', b"\xff\xfe"])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RaceError, match=r"results\.json (is not the results file of a race|has format None)"):
        results.load(path)


@pytest.mark.parametrize("lacking", ["task", "settings", "optimizers"])
def test_a_damaged_file_is_refused(tmp_path, lacking):
    path = tmp_path / "results.json"
    results.save(make_race(make_result("adamw", LOSS)), path)
    record = json.loads(path.read_text())
    del record[lacking]
    path.write_text(json.dumps(record))
    with pytest.raises(RaceError, match=f"damaged: KeyError: '{lacking}'"):
        results.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RaceError, match=r"cannot read .*: No such file"):
        results.load(tmp_path / "results.json")
