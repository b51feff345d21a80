"""What `optax-zoo race` does with its arguments."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console

import optax_zoo
from optax_zoo import Paper
from optax_zoo.race import entrants, report, runner, tasks
from optax_zoo.race.errors import RaceError, printable
from optax_zoo.race.progress import LiveProgress
from optax_zoo.race.results import FILE_NAME, RaceResults, Settings, Task, load, save
from optax_zoo.race.tasks import Problem

QUICK_GRID, QUICK_STEPS, QUICK_SEEDS = (0.25, 1.0, 4.0), 60, 3
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def race(options: argparse.Namespace, again: str) -> int:
    """Runs the race that `options` describe; `again` is the command that would go on with it.

    Returns:
      Exit status: 0, or 130 after an interruption.

    Raises:
      RaceError: something the user can put right.
    """
    console = Console()
    patterns = [name for word in options.optimizers for name in word.split(",") if name]
    papers = entrants.select(patterns) if patterns else entrants.by_default(options.quick)
    if options.list:
        entrants.print_methods(patterns, console)
        return 0
    if options.task and options.text:
        raise RaceError("--task and --text exclude each other")
    task = "text" if options.text else options.task or "digits"
    folder = options.out or Path(f"race-{task}")
    make_writable(folder)
    problem = tasks.load(task, options.text)
    results = begin(folder, problem, choose_settings(problem, options), options.resume, console)
    try:
        results = train(folder, problem, results, papers, console)
        report.print_leaderboard(results, console)
        page, *pictures = report.write_report(results, folder)
        console.print(f"wrote {printable(page)} and {len(pictures)} pictures", highlight=False, markup=False)
    except KeyboardInterrupt:
        done = len(load(folder / FILE_NAME).optimizers)
        kept = f"{done} finished optimizers are kept in {folder}"
        print(f"optax-zoo race: interrupted; {kept}; go on with: {again}", file=sys.stderr)
        return 130
    return 0


def choose_settings(problem: Problem, options: argparse.Namespace) -> Settings:
    """The task's own settings, made smaller by --quick, overruled by what the user asked for."""
    steps = QUICK_STEPS if options.quick else problem.steps
    seeds = QUICK_SEEDS if options.quick else problem.seeds
    rates = {rate for group in options.learning_rates or () for rate in group}
    return Settings(
        task=problem.name,
        data=problem.fingerprint,
        steps=options.steps or steps,
        batch_size=problem.batch_size,
        seeds=tuple(range(options.seeds or seeds)),
        base_learning_rate=problem.base_learning_rate,
        grid=QUICK_GRID if options.quick else problem.grid,
        learning_rates=tuple(sorted(rates)) or None,
        schedule=options.schedule,
    )


def make_writable(folder: Path) -> None:
    """Makes the folder and tries to write in it, before anything is computed.

    Raises:
      RaceError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RaceError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error


def begin(folder: Path, problem: Problem, settings: Settings, resume: bool, console: Console) -> RaceResults:
    """The results to go on with: those of the folder if `resume`, else new ones; older ones are moved aside.

    Raises:
      RaceError: with `resume`, if the folder's race is damaged, of another version, or not the same race; or the
        new file cannot be written, and the earlier one stays where it is.
    """
    path = folder / FILE_NAME
    results = RaceResults(
        task=Task(problem.name, problem.description, problem.loss_unit),
        settings=settings,
        versions=versions(),
        machine=machine(),
    )
    if resume and path.exists():
        found = load(path)
        refuse_differences(path, found, results)
        return found
    if not path.exists():
        keep(results, path)
        return results
    aside = next(new for n in itertools.count(1) if not (new := folder / f"results-{n}.json").exists())
    with telling(path):
        os.replace(path, aside)
        try:
            save(results, path)
        except OSError:
            os.replace(aside, path)
            raise
    console.print(f"kept the earlier results as {printable(aside)}", highlight=False, markup=False)
    return results


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Raises RaceError, which names `path`, for an OSError."""
    try:
        yield
    except OSError as error:
        raise RaceError(f"cannot write {path}: {error.strerror}; what was saved before is kept") from error


def keep(results: RaceResults, path: Path) -> None:
    """Saves the results.

    Raises:
      RaceError: they cannot be written, and the file stays as it is.
    """
    with telling(path):
        save(results, path)


def refuse_differences(path: Path, found: RaceResults, wanted: RaceResults) -> None:
    """Raises RaceError unless both races have the same settings and versions, and run on the same machine."""
    old, new = (
        dataclasses.asdict(race.settings) | dict(race.versions) | dict(race.machine) for race in (found, wanted)
    )
    different = [name for name in new if old.get(name) != new[name]]
    if different:
        listed = "; ".join(f"{name} {old.get(name)}, now {new[name]}" for name in different)
        raise RaceError(f"cannot resume: {path} is another race ({listed}); choose another --out")


def train(
    folder: Path, problem: Problem, results: RaceResults, papers: Sequence[Paper], console: Console
) -> RaceResults:
    """Runs the papers that `results` lacks, and saves after each."""
    left = [paper for paper in papers if paper.name not in results.names]
    if not left:
        return results
    path, settings = folder / FILE_NAME, results.settings
    count = runner.learning_rates(left[0], settings).size * len(settings.seeds)
    console.print(
        f"{problem.name}: {problem.description}\n"
        f"{len(papers)} optimizers, {count} runs of {settings.steps} steps each, all runs of one at once",
        highlight=False,
        markup=False,
    )

    with LiveProgress(console, len(papers) - len(left), len(papers), settings.steps) as watcher:
        return runner.race(runner.Track(problem, settings), left, results, lambda grown: keep(grown, path), watcher)


def versions() -> dict[str, str]:
    """Of Python, of this library, and of the packages that decide the numbers."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "optax_zoo": optax_zoo.__version__, **found}


def machine() -> dict[str, str]:
    """What the times depend on; nothing that tells whose machine it is."""
    device = jax.devices()[0]
    return {
        "cpus": f"{os.cpu_count()} CPUs",
        "platform": f"{platform.system()} {platform.machine()}",
        "device": f"JAX on {device.device_kind}",
    }
