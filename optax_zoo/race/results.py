"""What a race leaves behind: the typed record of every run, saved as strict JSON and read back unchanged.

Axes of the arrays: L learning rates, S seeds, E evaluations (the first before any step, the last after
the last step). A loss that was not finite is NaN here and `null` in the file.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from optax_zoo.race.errors import RaceError
from optax_zoo.race.typed_json import from_json, to_json

FILE_NAME = "results.json"
REFERENCE = "adamw"

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Task:
    """What was learnt: `name` on the command line, one sentence of `description`, the unit of every loss."""

    name: str
    description: str
    loss_unit: str


@dataclass(frozen=True)
class Settings:
    """Everything that decides the losses; two races may share a file only if these are equal.

    Attributes:
      task: name of the task.
      data: hash of the three splits.
      steps: optimizer steps of every run.
      batch_size: examples (or windows of text) per step.
      seeds: each decides the initialisation and the order of the batches, alike for all optimizers.
      base_learning_rate: AdamW's; a method's grid is `grid * relative_learning_rate * base_learning_rate`.
      grid: the factors of that grid.
      learning_rates: the absolute values for every optimizer, instead of the grid; None for the grid.
      schedule: one of `optax_zoo.race.schedules.SCHEDULES`.
    """

    task: str
    data: str
    steps: int
    batch_size: int
    seeds: tuple[int, ...]
    base_learning_rate: float
    grid: tuple[float, ...]
    learning_rates: tuple[float, ...] | None
    schedule: str


@dataclass(frozen=True, eq=False)
class OptimizerResult:
    """All runs of one optimizer.

    Attributes:
      name: name in the registry.
      library: "optax_zoo" or "optax".
      learning_rates: [L], increasing.
      eval_steps: [E], optimizer steps taken before each evaluation; starts at 0.
      train_loss: [L, S, E], on a fixed sample of the training split.
      selection_loss: [L, S, E], on the split that chooses the learning rate.
      report_loss: [L, S, E], on the split that is reported.
      accuracy: [L, S, E], fraction of the report split; None where the task has none.
      diverged: [L, S], see `optax_zoo.race.standings.find_diverged`.
      best: index into `learning_rates`, chosen on the selection split.
      step_seconds: of one step of all L * S runs at once, compilation excluded.
      relative_step_time: `step_seconds` over AdamW's, measured side by side.
      state_bytes_per_parameter: optimizer state of one run over its number of parameters.
      wall_seconds: everything that was spent on this optimizer, compilation and timing included.
    """

    name: str
    library: str
    learning_rates: Floats
    eval_steps: Ints
    train_loss: Floats
    selection_loss: Floats
    report_loss: Floats
    accuracy: Floats | None
    diverged: Bools
    best: int
    step_seconds: float
    relative_step_time: float
    state_bytes_per_parameter: float
    wall_seconds: float


@dataclass(frozen=True, eq=False)
class Record:
    """What a results file holds before its parts, which are done one by one.

    `versions` maps package names (and "python") to versions; `machine` says "cpus", "platform" and "device".
    """

    FORMAT: ClassVar[str]
    FILE_NAME: ClassVar[str]
    PARTS: ClassVar[str]

    task: Task
    settings: Settings
    versions: Mapping[str, str]
    machine: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts that are done."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ValueError unless all arrays are of one race with these settings."""
        raise NotImplementedError


AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True, eq=False)
class RaceResults(Record):
    """A whole race, finished or not: `optimizers` holds those that are done, in the order of the race."""

    FORMAT = "optax-zoo race 1"
    FILE_NAME = FILE_NAME
    PARTS = "optimizers"

    optimizers: tuple[OptimizerResult, ...] = ()

    def __getitem__(self, name: str) -> OptimizerResult:
        for result in self.optimizers:
            if result.name == name:
                return result
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the optimizers that are done."""
        return tuple(result.name for result in self.optimizers)

    def add(self, result: OptimizerResult) -> "RaceResults":
        """These results and one more optimizer."""
        return dataclasses.replace(self, optimizers=(*self.optimizers, result))

    def check(self) -> None:
        """See `Record`."""
        for result in self.optimizers:
            _check(result, self.settings)


def save(results: Record, path: Path) -> None:
    """Writes the file in one piece: a reader, or a crash, never sees half of it."""
    text = json.dumps({"format": results.FORMAT, **to_json(results)}, indent=1, allow_nan=False)
    write_atomically(path, text + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place in one step if nothing goes wrong."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load(path: Path) -> RaceResults:
    """The race that `save` wrote; errors are those of `read`."""
    return read(RaceResults, path)


def read(kind: type[AnyRecord], path: Path) -> AnyRecord:
    """The `kind` that `save` wrote.

    Raises:
      RaceError: unreadable, not the results of a race, of another version, or damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RaceError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RaceError(f"{path} is not the results file of a race: {error}") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != kind.FORMAT:
        raise RaceError(
            f"{path} has format {found!r} but this version reads {kind.FORMAT!r}; move it away or choose another --out"
        )
    try:
        results: AnyRecord = from_json(kind, {name: value for name, value in record.items() if name != "format"})
        results.check()
    except (ValueError, OverflowError) as error:
        raise RaceError(f"{path} is damaged: {error}") from error
    return results


def _check(result: OptimizerResult, settings: Settings) -> None:
    """Raises ValueError unless all arrays are of one race with these settings."""
    rates, evaluations = len(settings.learning_rates or settings.grid), result.eval_steps.size
    runs = (rates, len(settings.seeds))
    shapes = {"learning_rates": (rates,), "eval_steps": (evaluations,), "diverged": runs}
    shapes |= dict.fromkeys(("train_loss", "selection_loss", "report_loss", "accuracy"), (*runs, evaluations))
    for name, shape in shapes.items():
        array = getattr(result, name)
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} of {result.name} has shape {array.shape}, not {shape}")
    if not (np.diff(result.learning_rates, prepend=0.0) > 0).all():
        raise ValueError(f"learning_rates of {result.name} do not grow from above 0")
    steps = result.eval_steps
    if not steps.size or steps[0] != 0 or steps[-1] != settings.steps or (np.diff(steps) <= 0).any():
        raise ValueError(f"eval_steps of {result.name} do not grow from 0 to {settings.steps}")
    if not 0 <= result.best < rates:
        raise ValueError(f"best of {result.name} is {result.best}, not in [0, {rates})")
