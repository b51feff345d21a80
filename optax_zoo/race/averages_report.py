"""What `optax-zoo race --averages` shows: a table for the terminal and for a Markdown page, and a picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from rich.console import Console

import optax_zoo
from optax_zoo.race import averages_picture, drawing, tables
from optax_zoo.race.averages_results import RAW, AveragesResults, AverageStanding, standings
from optax_zoo.race.errors import RaceError
from optax_zoo.race.results import write_atomically
from optax_zoo.race.schedules import described
from optax_zoo.race.standings import DIVERGENCE_RULE, LEVEL, MIN_SEEDS, edge

FILE_NAME, PICTURE = "averages.md", "averages.png"
SIGNIFICANCE_RULE = (
    "An average differs from the raw weights when the two-sided paired t-test over seeds on the final report loss "
    f"stays below {LEVEL:g} after Holm's correction for all averages of this schedule; fewer than {MIN_SEEDS} seeds "
    "decide nothing."
)


def print_table(results: AveragesResults, console: Console) -> None:
    """Prints the final losses of all weights, and how they were made."""
    _cells(results).print(_title(results), _rules(results), console)


def write_report(results: AveragesResults, out_dir: Path) -> list[Path]:
    """Writes `averages.md` and `averages.png` into `out_dir` and returns their paths.

    Raises:
      RaceError: a file cannot be written; the results file is complete all the same.
    """
    try:
        with matplotlib.style.context(["default", drawing.STYLE]):
            pictures = drawing.save({PICTURE: averages_picture.picture(results)}, out_dir)
        page = out_dir / FILE_NAME
        write_atomically(page, markdown(results))
    except OSError as error:
        raise RaceError(f"cannot write to {out_dir}: {error.strerror}; {results.FILE_NAME} is complete") from error
    return [page, *pictures]


def markdown(results: AveragesResults) -> str:
    """The page: table, picture and rules."""
    versions = ", ".join(f"{package} {version}" for package, version in results.versions.items())
    parts = [
        f"# {_title(results)}",
        results.task.description,
        _cells(results).markdown(),
        f"![Held-out loss of raw and averaged weights]({PICTURE})",
        "\n".join(f"- {rule}" for rule in _rules(results)),
        f"From {', '.join(results.machine.values())}; {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def _title(results: AveragesResults) -> str:
    settings = results.settings
    size = f"{settings.steps} steps, {tables.count(len(settings.seeds), 'seed')}"
    return f"Raw against averaged weights of {settings.optimizer} on {results.task.name}: {size}"


def _cells(results: AveragesResults) -> tables.Cells:
    """Best weights first by the first schedule, two columns for each schedule."""
    rows = {run.schedule: standings(run) for run in results.runs}
    digits = tables.decimals([row.loss for by_name in rows.values() for row in by_name.values()])
    unit = results.task.loss_unit
    return tables.Cells(
        headings=[
            "weights",
            *(f"{name}{what}" for name in rows for what in (f": final loss ({unit})", ": against raw")),
        ],
        rows=[
            [name, *(cell for by_name in rows.values() for cell in _pair(by_name[name], digits))]
            for name in next(iter(rows.values()))
        ],
        reference=RAW,
    )


def _pair(row: AverageStanding, digits: int) -> Sequence[str]:
    final = tables.loss(row.loss, row.loss_spread, digits, row.diverged_runs, row.seeds)
    return final, tables.verdict(row.comparison, row.diverged)


def _rules(results: AveragesResults) -> list[str]:
    settings = results.settings
    rates = [
        f"{tables.learning_rate(run.learning_rates[run.best], edge(run.learning_rates, run.best))} with {run.schedule}"
        for run in results.runs
    ]
    arrows = any(edge(run.learning_rates, run.best) for run in results.runs)
    return [
        f"One run for each schedule and seed, watched by all averages, at the learning rate that is best for the raw "
        f"weights: {', '.join(rates)}." + " ↑ ↓: the highest or lowest of the grid." * arrows,
        described(*results.names),
        *(f"{name}({arguments}): {_source(name)}." for name, arguments in settings.averages.items()),
        "The learning rate is chosen on one split, the loss reported on another. Losses: mean ± standard deviation "
        f"over seeds. {DIVERGENCE_RULE}",
        SIGNIFICANCE_RULE,
    ]


def _source(name: str) -> str:
    papers = optax_zoo.papers()
    return f"{papers[name].title}, {papers[name].year}" if name in papers else "no longer registered"
