"""Tables of the same cells for the terminal and for a Markdown page."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optax_zoo.race.standings import Comparison

NOTHING = "-"
STYLES = {"better": "green", "worse": "red", "diverged": "red"}


@dataclass(frozen=True)
class Cells:
    """A table: the first cell of a row names it, the row called `reference` is bold."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    reference: str

    def markdown(self) -> str:
        """In GitHub's Markdown."""
        lines = [self.headings, ["---", *["---:"] * (len(self.headings) - 1)]]
        for row in self.rows:
            mark = "**" if row[0] == self.reference else ""
            lines.append([f"{mark}{cell}{mark}" for cell in row])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def print(self, title: str, rules: Sequence[str], console: Console) -> None:
        """Prints the table under its title, and below it the rules by which it was made."""
        table = self._table(title, narrow=False)
        unlimited = console.options.update(max_width=10_000)
        if console.measure(table, options=unlimited).maximum > console.width:
            table = self._table(title, narrow=True)
        console.print(table)
        for rule in rules:
            console.print(f"- {rule}", style="dim", markup=False, highlight=False)

    def _table(self, title: str, *, narrow: bool) -> Table:
        """If `narrow`, spreads and p-values stand on lines of their own."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if narrow else 2, 0, 0))
        table.title, table.title_justify, table.title_style = f"{title}\n", "left", "bold"
        for column, heading in enumerate(self.headings):
            table.add_column(heading.replace(" ", "\n"), justify="right" if column else "left", no_wrap=True)
        for row in self.rows:
            styled = [Text(_fold(cell) if narrow else cell, STYLES.get(cell.partition(",")[0], "")) for cell in row]
            table.add_row(*styled, style="bold" if row[0] == self.reference else "")
        return table


def _fold(cell: str) -> str:
    return re.sub(r",? (?=[±p] |\d+ of |diverged)", "\n", cell)


def count(number: int, noun: str) -> str:
    """The number and the noun, in the plural where it must be."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def decimals(losses: Sequence[float]) -> int:
    """Three, or as many as give the lowest loss three digits."""
    positive = [loss for loss in losses if math.isfinite(loss) and loss > 0]
    return max(3, 2 - math.floor(math.log10(min(positive)))) if positive else 3


def loss(mean: float, spread: float | None, digits: int, diverged_runs: int, seeds: int) -> str:
    """A mean loss and its spread, or what diverged."""
    if diverged_runs == seeds:
        return "diverged"
    lost = f", {diverged_runs} of {seeds} diverged" if diverged_runs else ""
    return mean_and_spread(mean, spread, digits) + lost


def mean_and_spread(mean: float, spread: float | None, digits: int) -> str:
    """The mean ± the standard deviation, where there is one."""
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def learning_rate(rate: float, edge: str | None) -> str:
    """With an arrow where it is the highest or lowest of its grid."""
    return f"{rate:.2g}" + {"highest": " ↑", "lowest": " ↓", None: ""}[edge]


def verdict(comparison: Comparison | None, diverged: bool) -> str:
    """Of a comparison with the reference, which itself has none."""
    if comparison is None:
        return "reference"
    if diverged:
        return NOTHING
    p = comparison.p_holm
    if p is None:
        return comparison.verdict
    return f"{comparison.verdict}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
