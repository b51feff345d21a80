"""The command: what it refuses, what it keeps, and that going on equals never having stopped."""

import argparse
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import optax_zoo
from optax_zoo import cli
from optax_zoo.race import command, entrants, report, results, runner, tasks

TINY = ["race", "--steps", "3", "--seeds", "2", "--learning-rates", "0.01,0.1"]
CURVES = ("train_loss", "selection_loss", "report_loss", "accuracy")


def write_nothing(results, folder):
    return [folder / "leaderboard.md"]


@pytest.fixture
def unpictured(monkeypatch):
    """No pictures, which have tests of their own."""
    monkeypatch.setattr(report, "write_report", write_nothing)


@pytest.fixture
def recorded(monkeypatch, uninterrupted):
    """Training that takes no time, because its results are known."""
    finished = results.load(uninterrupted / "results.json")
    monkeypatch.setattr(runner, "Track", lambda problem, settings: None)
    monkeypatch.setattr(runner, "run", lambda track, paper, watcher: finished[paper.name])


def run_program(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def refuse_to_train(*_):
    raise AssertionError("must be refused before training")


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(runner, "run", refuse_to_train)


def sentence(capsys):
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", write_nothing)
        assert cli.main([*TINY, "--optimizers", "sgd", "--out", str(folder)]) == 0
    return folder


def test_a_race_leaves_its_results(uninterrupted):
    race = results.load(uninterrupted / "results.json")
    assert race.names == ("adamw", "sgd")
    assert race.settings.steps == 3 and race.settings.seeds == (0, 1)
    assert race.settings.learning_rates == (0.01, 0.1)
    assert set(race.versions) >= {"python", "optax_zoo", "jax", "optax"}
    assert set(race.machine) == {"cpus", "platform", "device"}


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, capsys, monkeypatch, uninterrupted, unpictured):
    arguments = [*TINY, "--optimizers", "sgd", "--out", str(tmp_path)]
    whole = runner.run

    def stop_at_sgd(track, paper, watcher):
        if paper.name == "sgd":
            raise KeyboardInterrupt
        return whole(track, paper, watcher)

    monkeypatch.setattr(runner, "run", stop_at_sgd)
    assert cli.main(arguments) == 130
    told = sentence(capsys)
    assert "interrupted; 1 finished optimizers are kept in" in told
    assert told.endswith(f"--out {tmp_path} --resume")
    assert results.load(tmp_path / "results.json").names == ("adamw",)

    monkeypatch.setattr(runner, "run", whole)
    assert cli.main([*arguments, "--resume"]) == 0
    resumed = results.load(tmp_path / "results.json")
    straight = results.load(uninterrupted / "results.json")
    assert resumed.names == straight.names and resumed.settings == straight.settings
    for one, other in zip(resumed.optimizers, straight.optimizers, strict=True):
        for name in CURVES:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.usefixtures("untrained", "unpictured")
def test_resuming_a_finished_race_trains_nothing(capsys, uninterrupted):
    assert cli.main([*TINY, "--optimizers", "sgd", "--out", str(uninterrupted), "--resume"]) == 0
    assert "sgd" in capsys.readouterr().out


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--steps", "4"], "steps 3, now 4"),
        (["--seeds", "1"], "seeds (0, 1), now (0,)"),
        (["--learning-rates", "0.5"], "learning_rates (0.01, 0.1), now (0.5,)"),
        (["--schedule", "constant"], "schedule decay, now constant"),
        (["--task", "pysource"], "task digits, now pysource"),
    ],
)
def test_resuming_another_race_is_refused(capsys, uninterrupted, change, told):
    before = (uninterrupted / "results.json").read_text()
    assert cli.main([*TINY, *change, "--out", str(uninterrupted), "--resume"]) == 1
    line = sentence(capsys)
    assert line.startswith("optax-zoo race: cannot resume: ") and told in line
    assert (uninterrupted / "results.json").read_text() == before


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("of", "name", "value"),
    [("versions", "jax", "0.0.1"), ("machine", "device", "JAX on TPU v7"), ("machine", "cpus", "0 CPUs")],
)
def test_resuming_with_other_versions_or_elsewhere_is_refused(tmp_path, capsys, uninterrupted, of, name, value):
    record = json.loads((uninterrupted / "results.json").read_text())
    record[of][name] = value
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert cli.main([*TINY, "--out", str(tmp_path), "--resume"]) == 1
    assert f"({name} {value}, now " in sentence(capsys)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("content", "told"),
    [('{"format": "optax-zoo race 0"}', "has format 'optax-zoo race 0'"), ("{", "is not the results file of a race")],
)
def test_resuming_from_an_unusable_file_is_refused(tmp_path, capsys, content, told):
    (tmp_path / "results.json").write_text(content)
    assert cli.main([*TINY, "--out", str(tmp_path), "--resume"]) == 1
    assert told in sentence(capsys)
    assert (tmp_path / "results.json").read_text() == content


@pytest.mark.usefixtures("recorded", "unpictured")
def test_earlier_results_are_moved_aside(tmp_path, capsys, uninterrupted):
    earlier = (uninterrupted / "results.json").read_text()
    (tmp_path / "results.json").write_text(earlier)
    (tmp_path / "results-1.json").write_text("older")
    assert cli.main([*TINY, "--optimizers", "adamw", "--out", str(tmp_path)]) == 0
    assert "results-2.json" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "results-1.json").read_text() == "older"
    assert (tmp_path / "results-2.json").read_text() == earlier
    assert results.load(tmp_path / "results.json").names == ("adamw",)


@pytest.mark.usefixtures("recorded", "unpictured")
def test_a_full_disk_keeps_what_was_saved(tmp_path, capsys, monkeypatch):
    replace, writes = os.replace, []

    def fill_up(*paths):
        writes.append(paths)
        if len(writes) > 2:
            raise OSError(28, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(os, "replace", fill_up)
    assert cli.main([*TINY, "--optimizers", "sgd", "--out", str(tmp_path)]) == 1
    assert "No space left on device; what was saved before is kept" in sentence(capsys)
    assert results.load(tmp_path / "results.json").names == ("adamw",)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("earlier", [None, "earlier results"])
def test_a_disk_that_is_full_from_the_start_moves_nothing(tmp_path, capsys, monkeypatch, earlier):
    path, replace = tmp_path / "results.json", os.replace
    if earlier:
        path.write_text(earlier)

    def only_renames(source, target):
        if source.name.startswith("."):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", only_renames)
    assert cli.main([*TINY, "--out", str(tmp_path)]) == 1
    assert sentence(capsys) == (
        f"optax-zoo race: cannot write {path}: No space left on device; what was saved before is kept"
    )
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({path.name: earlier} if earlier else {})


@pytest.mark.usefixtures("recorded")
def test_a_report_that_cannot_be_written_leaves_the_results(tmp_path, capsys):
    (tmp_path / "leaderboard.md").mkdir()
    assert cli.main([*TINY, "--optimizers", "adamw", "--out", str(tmp_path)]) == 1
    assert sentence(capsys) == (f"optax-zoo race: cannot write to {tmp_path}: Is a directory; results.json is complete")
    assert results.load(tmp_path / "results.json").names == ("adamw",)


@pytest.mark.usefixtures("recorded")
def test_a_folder_of_any_name_is_told(tmp_path, capsys, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    monkeypatch.setattr(report, "write_report", write_nothing)
    arguments = [*TINY, "--optimizers", "adamw", "--out", str(folder)]
    assert cli.main(arguments) == cli.main(arguments) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert r"caf\udce9/leaderboard.md" in shown and r"caf\udce9/results-1.json" in shown


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--optimizers", "adamm"], "'adamm': no such method; did you mean 'adam"),
        (["--optimizers", "sgd,zzz*"], "'zzz*': no such method; see optax-zoo race --list"),
        (["--text", "absent.txt"], "cannot read absent.txt: No such file or directory"),
        (["--text", "short.txt"], "the text has 5 bytes in 1 file, the race needs at least 5200"),
        (["--text", "short.txt", "--task", "digits"], "--task and --text exclude each other"),
        (["--out", "short.txt"], "cannot write to short.txt: File exists; choose another --out"),
        (["--out", "short.txt/below"], "cannot write to short.txt/below: Not a directory; choose another --out"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("short")
    assert cli.main(["race", *arguments]) == 1
    line = sentence(capsys)
    assert line.startswith("optax-zoo race: ") and told in line
    assert (tmp_path / "short.txt").read_text() == "short"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--steps", "0"], "argument --steps: must be a positive whole number, got '0'"),
        (["--steps", "many"], "argument --steps: must be a positive whole number, got 'many'"),
        (["--seeds", "-3"], "argument --seeds: must be a positive whole number, got '-3'"),
        (["--learning-rates", "0.1,-1"], "argument --learning-rates: must be positive numbers, got '-1'"),
        (["--learning-rates", "nan"], "argument --learning-rates: must be positive numbers, got 'nan'"),
        (["--learning-rates", ","], "argument --learning-rates: must be positive numbers, got ''"),
        (["--text", ""], "argument --text: must name a file or folder, got ''"),
        (["--out", ""], "argument --out: must name a file or folder, got ''"),
        (["--task", "imagenet"], "argument --task: invalid choice: 'imagenet'"),
        (["--optimisers", "sgd"], "unrecognized arguments: --optimisers"),
    ],
)
def test_wrong_usage_is_told(capsys, arguments, told):
    with pytest.raises(SystemExit) as exit:
        cli.main(["race", *arguments])
    assert exit.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["flax", "matplotlib", "rich", "sklearn"])
def test_a_missing_extra_is_told(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from optax_zoo.cli import main; sys.exit(main(['race']))"
    done = run_program("-c", code)
    assert done.returncode == 1
    assert done.stderr == (
        f'optax-zoo race: needs the extra "race" ({missing} is missing); pip install "optax-zoo[race]"\n'
    )


def test_the_list_shows_every_method(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["race", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name, paper in optax_zoo.papers().items() if paper.trains)
    assert cli.main(["race", "--list", "--optimizers", "sgd"]) == 0
    shown = capsys.readouterr().out
    assert "sgd" in shown and "adabelief" not in shown


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["race", "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for option in ("optimizers", "task", "text", "steps", "seeds", "learning-rates", "quick", "out", "resume", "list"):
        assert f"--{option}" in shown


def test_wildcards_are_expanded_with_adamw_first():
    names = [paper.name for paper in entrants.select(["sgd", "nadam*", "ada[bd]*"])]
    assert names[0] == "adamw" and names[1] == "sgd" and len(names) == len(set(names))
    assert {"nadam", "nadamw", *optax_zoo.find("ada[bd]*")} <= set(names)


def test_defaults_come_from_the_registry():
    papers = optax_zoo.papers().values()
    default = entrants.by_default()
    assert default[0].name == "adamw"
    assert {paper.name for paper in default} == {paper.name for paper in papers if paper.races_by_default}
    assert {paper.library for paper in default} == {"optax", "optax_zoo"}
    quick = entrants.by_default(quick=True)
    families = [paper.make.__module__.split(".")[1] for paper in quick[1:]]
    assert quick[0].name == "adamw" and len(families) == len(set(families)) > 1


def test_quick_is_overruled_by_what_is_asked_for():
    options = argparse.Namespace(quick=True, steps=None, seeds=7, learning_rates=None, schedule="decay")
    problem = tasks.load("digits")
    settings = command.choose_settings(problem, options)
    assert (settings.steps, settings.grid) == (command.QUICK_STEPS, command.QUICK_GRID)
    assert settings.seeds == tuple(range(7))
    options = argparse.Namespace(quick=False, steps=9, seeds=None, learning_rates=[[0.2], [0.1]], schedule="decay")
    settings = command.choose_settings(problem, options)
    assert (settings.steps, settings.grid, len(settings.seeds)) == (9, problem.grid, problem.seeds)
    assert settings.learning_rates == (0.1, 0.2)


def test_the_quick_race_runs_as_a_program(tmp_path):
    done = run_program("-m", "optax_zoo.race", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    race = results.load(tmp_path / "results.json")
    assert race.names == tuple(paper.name for paper in entrants.by_default(quick=True))
    assert all(name in done.stdout for name in race.names)
    assert (tmp_path / "leaderboard.md").read_text()
    assert list(tmp_path.glob("*.png"))
    assert not any(result.diverged.all() for result in race.optimizers)
