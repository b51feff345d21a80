"""The style of the race's pictures, and what they share: headlines, axes, labels, files.

Colour is never the only cue: every line carries its name, and the coloured ones differ in dashes as well
(colours of Okabe and Ito). AdamW, the reference, is always the dark line; of many optimizers only the best
few are coloured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from optax_zoo.race.results import REFERENCE, Floats, replacing

WIDTH = 9.0  # inches; a README shows it at about 900 pixels
COLOURED = 7  # besides AdamW

INK, GREY, PALE, RED = "#1a1a1a", "#5f6368", "#c3c7cc", "#b3261e"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (3, 1)),
    (0, (9, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
)
HALO = withStroke(linewidth=2.5, foreground="white")
STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef0",
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": GREY,
    "ytick.labelcolor": GREY,
}
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8))

Points = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Look:
    """How the lines of one optimizer are drawn."""

    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    width: float
    layer: int

    @property
    def text(self) -> str:
        """The colour, dark enough to be read on white."""
        red, green, blue = (0.7 * part + 0.02 for part in colors.to_rgb(self.colour))
        return colors.to_hex((red, green, blue))


ADAMW = Look(INK, "-", 2.6, 6)
OTHER = Look("#b4b8bd", "-", 1.0, 3)


def looks(names: Sequence[str]) -> Mapping[str, Look]:
    """A look for every optimizer, best first: AdamW dark, the best others coloured, the rest grey."""
    others = [name for name in names if name != REFERENCE]
    coloured = COLOURED if len(others) <= COLOURED else COLOURED - 1
    styles = [Look(colour, dashes, 1.9, 5) for colour, dashes in zip(COLOURS, DASHES, strict=True)]
    chosen = dict(zip(others[:coloured], styles, strict=False))
    return {name: ADAMW if name == REFERENCE else chosen.get(name, OTHER) for name in names}


def spread_labels(positions: ArrayLike, spacing: float, lower: float, upper: float) -> Floats:
    """Moves labels apart as little as possible, in the sense of least squares.

    Args:
      positions: [N], where each label would like to stand.
      spacing: the least distance between neighbours.
      lower, upper: bounds for the labels; where they do not fit, they overflow both ends alike.

    Returns:
      [N] positions, at least `spacing` apart, in the order of the wishes; equal wishes keep their own order.
    """
    wishes = np.asarray(positions, dtype=np.float64)
    order = np.argsort(wishes, kind="stable")
    steps = spacing * np.arange(wishes.size)
    highest = upper - steps[-1] if wishes.size else upper
    if highest < lower:
        lower = highest = (lower + highest) / 2
    placed = np.empty_like(wishes)
    placed[order] = np.clip(isotonic_regression(wishes[order] - steps).x, lower, highest) + steps
    return placed


def new_figure(height: float, title: str, subtitle: str, *, width: float = WIDTH, dpi: float = 200) -> Figure:
    """A white figure of `width` times `height` inches with a headline at its upper left."""
    figure = Figure(figsize=(width, height), dpi=dpi)
    figure.text(0.12 / width, 1 - 0.12 / height, title, size=13, weight="bold", va="top")
    figure.text(0.12 / width, 1 - 0.42 / height, subtitle, size=9.5, color=GREY, va="top")
    return figure


def footnote(figure: Figure, text: str) -> None:
    """Writes `text` at the lower left."""
    width, height = figure.get_size_inches()
    figure.text(0.12 / width, 0.1 / height, text, size=9, color=RED, va="bottom", wrap=True)


def margins(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> dict[str, float]:
    """The margins, given in inches, as the fractions that matplotlib takes."""
    width, height = figure.get_size_inches()
    return {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": bottom / height,
        "top": 1 - top / height,
    }


def new_sheet(count: int, *, columns: int, aspect: float, title: str, subtitle: str) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, filled row by row, of height `aspect` times width, labelled at its rim."""
    columns = min(columns, max(count, 2))
    rows = math.ceil(count / columns)
    left, right, bottom, top, gap, wspace = 0.85, 0.15, 0.6, 0.95, 0.42, 0.1
    panel_height = aspect * (WIDTH - left - right) / (columns + wspace * (columns - 1))
    figure = new_figure(top + bottom + rows * (panel_height + gap) - gap, title, subtitle)
    edges = margins(figure, left=left, right=right, bottom=bottom, top=top)
    grid = figure.add_gridspec(rows, columns, hspace=gap / panel_height, wspace=wspace, **edges)
    panels = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(count)]
    for i, panel in enumerate(panels):
        panel.tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= count)
    return figure, panels


def log_axis(axes: Axes, which: Literal["x", "y"], lower: float, upper: float, *, least: int = 4) -> None:
    """A logarithmic axis from `lower` to `upper` with `least` to 8 round ticks, whatever the range."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(lower, upper)
    rim = (upper / lower) ** 0.03
    axis.set_major_locator(FixedLocator(round_ticks(lower * rim, upper / rim, least)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def round_ticks(lower: float, upper: float, least: int = 4) -> list[float]:
    """About `least` to 8 numbers between the bounds, as round as that many can be, for a logarithmic axis."""
    powers = range(math.floor(math.log10(lower)), math.ceil(math.log10(upper)) + 1)
    for digits in MANTISSAS:
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        inside = [tick for tick in ticks if lower <= tick <= upper]
        if len(inside) >= least:
            return inside[:: math.ceil(len(inside) / max(4, 2 * least))]
    return [tick for tick in MaxNLocator(7).tick_values(lower, upper) if lower <= tick <= upper]


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]], look: Mapping[str, Look]) -> None:
    """Writes a label beside the right end of every line, joined to it, none over another.

    Args:
      axes: with its final limits and position.
      ends: last value and label of every line; one above the axes is labelled at their top with ↑.
      look: of every line.
    """
    size = 9.0
    lower, upper = axes.get_ylim()
    to_axes = axes.transData + axes.transAxes.inverted()
    wishes = [to_axes.transform((1.0, np.clip(value, lower, upper)))[1] for value, _ in ends.values()]
    box = axes.get_window_extent().transformed(axes.figure.dpi_scale_trans.inverted())
    width, height = 72 * box.width, 72 * box.height
    placed = spread_labels(wishes, 1.3 * size / height, -0.04, 1.0)
    for (name, (value, text)), wish, y in zip(ends.items(), wishes, placed, strict=True):
        style = look[name]
        joint = {"color": style.colour, "transform": axes.transAxes, "clip_on": False}
        axes.plot([1, 1 + 16 / width], [wish, y], linewidth=0.7, **joint)
        sample = [1 + 16 / width, 1 + 38 / width]
        axes.plot(sample, [y, y], linewidth=style.width, linestyle=style.dashes, **joint)
        axes.text(
            1 + 43 / width,
            y,
            f"{text} ↑" if value > upper else text,
            size=size,
            va="center",
            color=GREY if style is OTHER else style.text,
            weight="bold" if style is ADAMW else "normal",
            transform=axes.transAxes,
        )


def shown(value: float) -> str:
    """Three digits."""
    return f"{value:#.3g}".rstrip(".")


def note(axes: Axes, text: str, at: Sequence[float] | Points, offset: Sequence[float] | Points, **style: Any) -> None:
    """Writes `text` at `offset` points from `at`, with a white rim that keeps it legible on lines."""
    style = {"size": 9.5, "zorder": 9, "path_effects": [HALO], **style}
    axes.annotate(text, (at[0], at[1]), (offset[0], offset[1]), textcoords="offset points", **style)


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Writes each figure to its path below `folder`, in one piece; equal figures give equal files."""
    return [_save(figure, folder / name) for name, figure in figures.items()]


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path
