"""What a race shows: the leaderboard in the terminal and as a Markdown page, and the pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import optax_zoo
from optax_zoo.race import pictures, surface, tables
from optax_zoo.race.errors import RaceError
from optax_zoo.race.results import FILE_NAME as RESULTS
from optax_zoo.race.results import REFERENCE, RaceResults, write_atomically
from optax_zoo.race.schedules import DEFAULT, described
from optax_zoo.race.standings import DIVERGENCE_RULE, SIGNIFICANCE_RULE, Standing, leaderboard
from optax_zoo.race.tables import NOTHING, Cells, count, decimals

FILE_NAME = "leaderboard.md"
CAPTIONS = {
    "curves.png": "Loss on the report split, every optimizer at its best learning rate",
    "training_curves.png": "Loss on a sample of the training split, every optimizer at its best learning rate",
    "sensitivity.png": "Final loss against the learning rate, one panel for each optimizer",
    "surface.png": "The path of every optimizer through a curved valley in two dimensions",
}


@dataclass(frozen=True)
class Column:
    """One column of the leaderboard: what stands above it and in it, and how it was made."""

    heading: str
    cell: Callable[[Standing], str]
    rule: str


def print_leaderboard(results: RaceResults, console: Console) -> None:
    """Prints the leaderboard, best first, and the rules by which it was made."""
    rows = leaderboard(results)
    columns = _columns(results, rows)
    _cells(rows, columns).print(_title(results), _rules(results, columns), console)


def write_report(results: RaceResults, out_dir: Path) -> list[Path]:
    """Writes `leaderboard.md` and the pictures into `out_dir` and returns their paths, the page first.

    An optimizer that is no longer registered has no picture on the surface.

    Raises:
      RaceError: a file cannot be written; the results file is complete all the same.
    """
    papers = optax_zoo.papers()
    paths = {name: surface.run(papers[name]) for name in results.names if name in papers}
    try:
        drawn = pictures.draw(results, paths, out_dir)
        page = out_dir / FILE_NAME
        write_atomically(page, markdown(results, [path.relative_to(out_dir).as_posix() for path in drawn]))
    except OSError as error:
        raise RaceError(f"cannot write to {out_dir}: {error.strerror}; {RESULTS} is complete") from error
    return [page, *drawn]


def markdown(results: RaceResults, drawn: Sequence[str] = ()) -> str:
    """The page: table, rules and the pictures `drawn`, given by their paths relative to the page."""
    rows = leaderboard(results)
    columns = _columns(results, rows)
    single = [path for path in drawn if path not in CAPTIONS]
    links = ", ".join(f"[{Path(path).stem}]({path})" for path in single)
    machine = ", ".join(results.machine.values())
    versions = ", ".join(f"{package} {version}" for package, version in results.versions.items())
    parts = [
        f"# {_title(results)}",
        results.task.description,
        markdown_table(results),
        "\n".join(f"- {rule}" for rule in _rules(results, columns)),
        *(f"![{caption}]({path})" for path, caption in CAPTIONS.items() if path in drawn),
        *([f"The paths one by one: {links}"] if links else []),
        f"Times from {machine}; {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(results: RaceResults) -> str:
    """The leaderboard as a table in GitHub's Markdown, best first, AdamW in bold."""
    rows = leaderboard(results)
    return _cells(rows, _columns(results, rows)).markdown()


def _cells(rows: Sequence[Standing], columns: Sequence[Column]) -> Cells:
    return Cells(
        headings=[column.heading for column in columns],
        rows=[[column.cell(row) for column in columns] for row in rows],
        reference=REFERENCE,
    )


def _title(results: RaceResults) -> str:
    seeds, steps = len(results.settings.seeds), results.settings.steps
    size = f"{count(len(results.names), 'optimizer')}, {steps} steps, {count(seeds, 'seed')}"
    return f"Race on {results.task.name}: {size}"


def _columns(results: RaceResults, rows: Sequence[Standing]) -> list[Column]:
    """The columns that have something to say about these rows."""
    digits = decimals([row.loss for row in rows])
    columns = [
        Column("optimizer", lambda row: row.name, ""),
        Column(
            "learning rate",
            _learning_rate,
            "The learning rate is chosen on one split, the loss reported on another."
            + " ↑ ↓: the highest or lowest rate of the grid; a wider grid might do better."
            * any(row.at_edge and not row.diverged for row in rows),
        ),
        Column(
            f"final loss ({results.task.loss_unit})",
            lambda row: tables.loss(row.loss, row.loss_spread, digits, row.diverged_runs, row.seeds),
            f"Losses and accuracies: mean ± standard deviation over seeds. {DIVERGENCE_RULE}",
        ),
    ]
    if any(row.accuracy is not None for row in rows):
        columns.append(Column("accuracy (%)", _accuracy, ""))
    if any(row.comparison and row.steps_to_reference is not None for row in rows):
        rule = "Steps to AdamW's loss: until the mean loss is as low as AdamW's after its last step."
        columns.append(Column("steps to AdamW's loss", _steps, rule))
    if any(row.comparison for row in rows):
        columns.append(
            Column("against AdamW", lambda row: tables.verdict(row.comparison, row.diverged), SIGNIFICANCE_RULE)
        )
    if any(math.isfinite(row.relative_step_time) for row in rows):
        columns.append(
            Column("time per step", _time, "Time per step: of all runs at once, relative to AdamW's beside it.")
        )
    columns.append(Column("state per parameter (bytes)", lambda row: f"{row.state_bytes_per_parameter:.3g}", ""))
    return columns


def _rules(results: RaceResults, columns: Sequence[Column]) -> list[str]:
    schedule = results.settings.schedule
    return [described(schedule)] * (schedule != DEFAULT) + [column.rule for column in columns if column.rule]


def _learning_rate(row: Standing) -> str:
    return NOTHING if row.diverged else tables.learning_rate(row.learning_rate, row.at_edge)


def _accuracy(row: Standing) -> str:
    if row.diverged or row.accuracy is None or not math.isfinite(row.accuracy):
        return NOTHING
    spread = None if row.accuracy_spread is None else 100 * row.accuracy_spread
    return tables.mean_and_spread(100 * row.accuracy, spread, 1)


def _steps(row: Standing) -> str:
    if row.steps_to_reference is None:
        return NOTHING
    return f"{row.steps_to_reference:.0f}" if math.isfinite(row.steps_to_reference) else "never"


def _time(row: Standing) -> str:
    return f"{row.relative_step_time:.2f}x" if math.isfinite(row.relative_step_time) else NOTHING
