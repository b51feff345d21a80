"""What `optax-zoo race` does with its arguments."""

import argparse
import contextlib
import dataclasses
import functools
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
from optax_zoo.race import averages, averages_report, entrants, report, runner, tasks
from optax_zoo.race.averages_results import AveragesResults, AveragesSettings
from optax_zoo.race.errors import RaceError, printable
from optax_zoo.race.progress import LiveProgress
from optax_zoo.race.results import AnyRecord, RaceResults, Record, Settings, Task, read, save
from optax_zoo.race.tables import count
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
    watched = None if options.averages is None else entrants.only(options.averages, patterns)
    if options.task and options.text:
        raise RaceError("--task and --text exclude each other")
    task = "text" if options.text else options.task or "digits"
    folder = options.out or Path(f"race-{task}")
    make_writable(folder)
    problem = tasks.load(task, options.text)
    settings = choose_settings(problem, options)
    if watched:
        results = begin(folder, new_averages(problem, settings, watched), options.resume, console)
        go = functools.partial(watch, folder, problem, results, watched, console)
    else:
        results = begin(folder, new_race(problem, settings), options.resume, console)
        go = functools.partial(compete, folder, problem, results, papers, console)
    try:
        page, *pictures = go()
    except KeyboardInterrupt:
        done = len(read(type(results), folder / results.FILE_NAME).names)
        kept = f"{done} finished {results.PARTS} are kept in {folder}"
        print(f"optax-zoo race: interrupted; {kept}; go on with: {again}", file=sys.stderr)
        return 130
    wrote = f"wrote {printable(page)} and {count(len(pictures), 'picture')}"
    console.print(wrote, highlight=False, markup=False)
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


def new_race(problem: Problem, settings: Settings) -> RaceResults:
    """A race in which no optimizer has run yet."""
    return RaceResults(task=described(problem), settings=settings, versions=versions(), machine=machine())


def new_averages(problem: Problem, settings: Settings, paper: Paper) -> AveragesResults:
    """A comparison of raw and averaged weights in which no schedule has run yet."""
    watching = {name: averages.described(known) for name, known in averages.averages(settings.steps).items()}
    return AveragesResults(
        task=described(problem),
        settings=AveragesSettings(**vars(settings), optimizer=paper.name, averages=watching),
        versions=versions(),
        machine=machine(),
    )


def described(problem: Problem) -> Task:
    """The task of a problem."""
    return Task(problem.name, problem.description, problem.loss_unit)


def begin(folder: Path, fresh: AnyRecord, resume: bool, console: Console) -> AnyRecord:
    """The results to go on with: those of the folder if `resume`, else fresh ones; older ones are moved aside.

    Raises:
      RaceError: with `resume`, if the folder's race is damaged, of another version, or not the same race; or the
        new file cannot be written, and the earlier one stays where it is.
    """
    path = folder / fresh.FILE_NAME
    if resume and path.exists():
        found = read(type(fresh), path)
        refuse_differences(path, found, fresh)
        return found
    if not path.exists():
        keep(fresh, path)
        return fresh
    aside = next(new for n in itertools.count(1) if not (new := folder / f"{path.stem}-{n}.json").exists())
    with telling(path):
        os.replace(path, aside)
        try:
            save(fresh, path)
        except OSError:
            os.replace(aside, path)
            raise
    console.print(f"kept the earlier results as {printable(aside)}", highlight=False, markup=False)
    return fresh


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Raises RaceError, which names `path`, for an OSError."""
    try:
        yield
    except OSError as error:
        raise RaceError(f"cannot write {path}: {error.strerror}; what was saved before is kept") from error


def keep(results: Record, path: Path) -> None:
    """Saves the results.

    Raises:
      RaceError: they cannot be written, and the file stays as it is.
    """
    with telling(path):
        save(results, path)


def refuse_differences(path: Path, found: Record, wanted: Record) -> None:
    """Raises RaceError unless both races have the same settings and versions, and run on the same machine."""
    old, new = (
        dataclasses.asdict(race.settings) | dict(race.versions) | dict(race.machine) for race in (found, wanted)
    )
    different = [name for name in new if old.get(name) != new[name]]
    if different:
        listed = "; ".join(f"{name} {old.get(name)}, now {new[name]}" for name in different)
        raise RaceError(f"cannot resume: {path} is another race ({listed}); choose another --out")


def compete(
    folder: Path, problem: Problem, results: RaceResults, papers: Sequence[Paper], console: Console
) -> list[Path]:
    """Runs the papers that `results` lacks, saves after each, shows the leaderboard; returns what was written."""
    left = [paper for paper in papers if paper.name not in results.names]
    path, settings = folder / results.FILE_NAME, results.settings
    if left:
        runs = runner.learning_rates(left[0], settings).size * len(settings.seeds)
        announce(
            problem, f"{len(papers)} optimizers, {runs} runs of {settings.steps} steps each, all runs of one", console
        )
        with LiveProgress(console, len(papers) - len(left), len(papers), settings.steps) as watcher:
            track = runner.Track(problem, settings)
            results = runner.race(track, left, results, lambda grown: keep(grown, path), watcher)
    report.print_leaderboard(results, console)
    return report.write_report(results, folder)


def watch(folder: Path, problem: Problem, results: AveragesResults, paper: Paper, console: Console) -> list[Path]:
    """Runs the schedules that `results` lacks, saves after each, shows the losses; returns what was written."""
    path, settings = folder / results.FILE_NAME, results.settings
    done, every = len(results.names), settings.schedules
    if done < len(every):
        runs = runner.learning_rates(paper, settings).size * len(settings.seeds)
        announce(
            problem, f"{paper.name} with {' and '.join(every)}: {runs} runs of {settings.steps} steps each", console
        )
        with LiveProgress(console, done, len(every), settings.steps, of="schedules") as watcher:
            results = averages.watch(problem, paper, results, lambda grown: keep(grown, path), watcher)
    averages_report.print_table(results, console)
    return averages_report.write_report(results, folder)


def announce(problem: Problem, what: str, console: Console) -> None:
    """Says what begins."""
    console.print(f"{problem.name}: {problem.description}\n{what} at once", highlight=False, markup=False)


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
