"""Drawings of the paths that `optax_zoo.race.surface` computes: one sheet of all, and one picture of each."""

import functools
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from optax_zoo.race import surface
from optax_zoo.race.drawing import GREY, INK, margins, new_figure, new_sheet, note
from optax_zoo.race.results import Floats

DOT_EVERY = 25
TRAINED, AVERAGED = "#0072b2", "#d55e00"
TERRAIN = LinearSegmentedColormap.from_list("terrain", ["#ffffff", "#e3e8ee", "#a9b4c0"])


def sheet(paths: Mapping[str, surface.Trajectory]) -> Figure:
    """All paths side by side."""
    figure, panels = new_sheet(
        len(paths),
        columns=4 if len(paths) <= 12 else 5,
        aspect=1.0,
        title="Every optimizer in the same curved valley",
        subtitle=f"{surface.STEPS} steps at the best of {surface.LEARNING_RATES.size} learning rates, "
        f"a dot every {DOT_EVERY}; circle: start; star: minimum; dashed: averaged",
    )
    for panel, (name, path) in zip(panels, paths.items(), strict=True):
        _draw_path(panel, path, size=0.8)
        panel.set_title(name, size=9.5, loc="left", pad=4)
        end = f"f = {path.value:.0e}" if np.isfinite(path.value) else "diverged"
        note(panel, end, (0, -0.92), (0, 0), size=8.5, ha="center", va="bottom")
    figure.supxlabel("x", size=9.5, color=GREY)
    figure.supylabel("y", size=9.5, color=GREY, rotation=0)
    return figure


def picture(name: str, path: surface.Trajectory) -> Figure:
    """The path of one optimizer."""
    if np.isfinite(path.value):
        end = f"{surface.STEPS} steps at learning rate {path.learning_rate:.2g}, ending at f = {path.value:.1e}"
    else:
        end = f"diverged at all of {surface.LEARNING_RATES.size} learning rates"
    subtitle = f"{end}; a dot every {DOT_EVERY} steps"
    figure = new_figure(6.45, f"{name} in a curved valley", subtitle, width=6.0, dpi=150)
    axes = figure.add_subplot()
    figure.subplots_adjust(**margins(figure, left=0.45, right=0.15, bottom=0.45, top=0.85))
    axes.set_xlabel("x", loc="right")
    axes.set_ylabel("y", loc="top", rotation=0)
    _draw_path(axes, path, size=1.3)
    note(axes, "start", surface.START, (8, 6))
    note(axes, "minimum", surface.MINIMUM, (12, -4))
    if path.averaged is not None:
        trained, averaged = _widest_gap(path.points, path.averaged)
        away = (averaged - trained) / (np.linalg.norm(averaged - trained) + 1e-9)
        centred = {"weight": "bold", "ha": "center", "va": "center"}
        note(axes, "averaged", averaged, 22 * away, color=AVERAGED, **centred)
        note(axes, "trained", trained, -22 * away, color=TRAINED, **centred)
    return figure


def _draw_path(axes: Axes, path: surface.Trajectory, *, size: float) -> None:
    x, y, height = _terrain()
    axes.contourf(x, y, height, levels=np.linspace(-2, 2.6, 13), cmap=TERRAIN)
    axes.set_aspect("equal")
    axes.set_xlim(surface.LOWER[0], surface.UPPER[0])
    axes.set_ylim(surface.LOWER[1], surface.UPPER[1])
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([0, 1, 2])
    axes.grid(False)
    axes.plot(*surface.MINIMUM, "*", color=INK, markersize=9 * size, zorder=6)
    axes.plot(*surface.START, "o", color="white", markeredgecolor=INK, markersize=5 * size, zorder=6)
    for points, colour, dashes in ((path.points, TRAINED, "-"), (path.averaged, AVERAGED, "--")):
        if points is not None:
            axes.plot(*points.T, color=colour, linestyle=dashes, linewidth=1.3 * size, zorder=4)
            axes.plot(*points[::DOT_EVERY].T, ".", color=colour, markersize=5 * size, zorder=5)


def _widest_gap(points: surface.Points, others: surface.Points) -> tuple[surface.Points, surface.Points]:
    """The point of `others` that lies farthest from the path of `points`, after its nearest there."""
    distances = np.linalg.norm(others[:, None] - points[None], axis=-1)
    farthest = int(distances.min(axis=1).argmax())
    return points[int(distances[farthest].argmin())], others[farthest]


@functools.cache
def _terrain() -> tuple[Floats, Floats, Floats]:
    x, y = (np.linspace(low, high, 241) for low, high in zip(surface.LOWER, surface.UPPER, strict=True))
    height = np.asarray(surface.valley(np.stack(np.meshgrid(x, y))), dtype=np.float64)
    return x, y, np.log10(height + 1e-2)
