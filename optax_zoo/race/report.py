"""What a race shows: the leaderboard in the terminal and as a Markdown page, and the pictures."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import optax_zoo
from optax_zoo.race import pictures, surface
from optax_zoo.race.errors import RaceError
from optax_zoo.race.results import FILE_NAME as RESULTS
from optax_zoo.race.results import REFERENCE, RaceResults, write_atomically
from optax_zoo.race.standings import DIVERGENCE_RULE, SIGNIFICANCE_RULE, Standing, leaderboard

FILE_NAME = "leaderboard.md"
NOTHING = "-"
STYLES = {"better": "green", "worse": "red", "diverged": "red"}
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
    table = _table(_title(results), rows, columns, narrow=False)
    unlimited = console.options.update(max_width=10_000)
    if console.measure(table, options=unlimited).maximum > console.width:
        table = _table(_title(results), rows, columns, narrow=True)
    console.print(table)
    for rule in _rules(columns):
        console.print(f"- {rule}", style="dim", markup=False, highlight=False)


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
        "\n".join(f"- {rule}" for rule in _rules(columns)),
        *(f"![{caption}]({path})" for path, caption in CAPTIONS.items() if path in drawn),
        *([f"The paths one by one: {links}"] if links else []),
        f"Times from {machine}; {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(results: RaceResults) -> str:
    """The leaderboard as a table in GitHub's Markdown, best first, AdamW in bold."""
    rows = leaderboard(results)
    columns = _columns(results, rows)
    lines = [[column.heading for column in columns], ["---", *["---:"] * (len(columns) - 1)]]
    for row in rows:
        mark = "**" if row.name == REFERENCE else ""
        lines.append([f"{mark}{column.cell(row)}{mark}" for column in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(title: str, rows: Sequence[Standing], columns: Sequence[Column], *, narrow: bool) -> Table:
    """The table for the terminal; if `narrow`, spreads and p-values stand on lines of their own."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if narrow else 2, 0, 0))
    table.title, table.title_justify, table.title_style = f"{title}\n", "left", "bold"
    for column in columns:
        heading = column.heading.replace(" ", "\n")
        table.add_column(heading, justify="left" if column is columns[0] else "right", no_wrap=True)
    for row in rows:
        cells = [column.cell(row) for column in columns]
        styled = [Text(_fold(cell) if narrow else cell, STYLES.get(cell.partition(",")[0], "")) for cell in cells]
        table.add_row(*styled, style="bold" if row.name == REFERENCE else "")
    return table


def _fold(cell: str) -> str:
    return re.sub(r",? (?=[±p] |\d+ of |diverged)", "\n", cell)


def _title(results: RaceResults) -> str:
    seeds, steps = len(results.settings.seeds), results.settings.steps
    size = f"{_count(len(results.names), 'optimizer')}, {steps} steps, {_count(seeds, 'seed')}"
    return f"Race on {results.task.name}: {size}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _columns(results: RaceResults, rows: Sequence[Standing]) -> list[Column]:
    """The columns that have something to say about these rows."""
    decimals = _decimals([row.loss for row in rows])
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
            lambda row: _loss(row, decimals),
            f"Losses and accuracies: mean ± standard deviation over seeds. {DIVERGENCE_RULE}",
        ),
    ]
    if any(row.accuracy is not None for row in rows):
        columns.append(Column("accuracy (%)", _accuracy, ""))
    if any(row.comparison and row.steps_to_reference is not None for row in rows):
        rule = "Steps to AdamW's loss: until the mean loss is as low as AdamW's after its last step."
        columns.append(Column("steps to AdamW's loss", _steps, rule))
    if any(row.comparison for row in rows):
        columns.append(Column("against AdamW", _verdict, SIGNIFICANCE_RULE))
    if any(math.isfinite(row.relative_step_time) for row in rows):
        columns.append(
            Column("time per step", _time, "Time per step: of all runs at once, relative to AdamW's beside it.")
        )
    columns.append(Column("state per parameter (bytes)", lambda row: f"{row.state_bytes_per_parameter:.3g}", ""))
    return columns


def _rules(columns: Sequence[Column]) -> list[str]:
    return [column.rule for column in columns if column.rule]


def _decimals(losses: Sequence[float]) -> int:
    """Three, or as many as give the lowest loss three digits."""
    positive = [loss for loss in losses if math.isfinite(loss) and loss > 0]
    return max(3, 2 - math.floor(math.log10(min(positive)))) if positive else 3


def _learning_rate(row: Standing) -> str:
    if row.diverged:
        return NOTHING
    return f"{row.learning_rate:.2g}" + {"highest": " ↑", "lowest": " ↓", None: ""}[row.at_edge]


def _loss(row: Standing, decimals: int) -> str:
    if row.diverged:
        return "diverged"
    lost = f", {row.diverged_runs} of {row.seeds} diverged" if row.diverged_runs else ""
    return _mean_and_spread(row.loss, row.loss_spread, decimals) + lost


def _accuracy(row: Standing) -> str:
    if row.diverged or row.accuracy is None or not math.isfinite(row.accuracy):
        return NOTHING
    spread = None if row.accuracy_spread is None else 100 * row.accuracy_spread
    return _mean_and_spread(100 * row.accuracy, spread, 1)


def _mean_and_spread(mean: float, spread: float | None, decimals: int) -> str:
    return f"{mean:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _steps(row: Standing) -> str:
    if row.steps_to_reference is None:
        return NOTHING
    return f"{row.steps_to_reference:.0f}" if math.isfinite(row.steps_to_reference) else "never"


def _verdict(row: Standing) -> str:
    if row.comparison is None:
        return "reference"
    if row.diverged:
        return NOTHING
    p = row.comparison.p_holm
    if p is None:
        return row.comparison.verdict
    return f"{row.comparison.verdict}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _time(row: Standing) -> str:
    return f"{row.relative_step_time:.2f}x" if math.isfinite(row.relative_step_time) else NOTHING
