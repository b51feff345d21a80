"""The pictures of a race: loss curves, sensitivity to the learning rate, paths in two dimensions."""

import functools
from collections.abc import Mapping
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from optax_zoo.race import surface
from optax_zoo.race.drawing import (
    GREY,
    INK,
    OTHER,
    RED,
    STYLE,
    Look,
    footnote,
    label_ends,
    log_axis,
    looks,
    margins,
    new_figure,
    new_sheet,
    save,
)
from optax_zoo.race.results import REFERENCE, Floats, OptimizerResult, RaceResults
from optax_zoo.race.standings import leaderboard

LABELLED = 30
BANDS = 3
DOT_EVERY = 25
TRAINED, AVERAGED = "#0072b2", "#d55e00"
TERRAIN = LinearSegmentedColormap.from_list("terrain", ["#ffffff", "#e3e8ee", "#a9b4c0"])
HALO = withStroke(linewidth=2.5, foreground="white")


def draw(results: RaceResults, paths: Mapping[str, surface.Trajectory], folder: Path) -> list[Path]:
    """Writes all pictures and returns where.

    Args:
      results: of the race, with at least one optimizer.
      paths: the trajectory of every optimizer that is to be shown on the surface; may be empty.
      folder: an existing folder; the paths of single optimizers go to its folder `surface`.
    """
    with matplotlib.style.context(["default", STYLE]):
        figures = {
            "curves.png": curves(results),
            "training_curves.png": curves(results, training=True),
            "sensitivity.png": sensitivity(results),
        }
        if paths:
            figures["surface.png"] = surface_sheet(paths)
        figures |= {f"surface/{name}.png": surface_picture(name, path) for name, path in paths.items()}
        return save(figures, folder)


def curves(results: RaceResults, *, training: bool = False) -> Figure:
    """Loss against steps of every optimizer at its best learning rate, on the report or training split."""
    standings = leaderboard(results)
    look = looks([row.name for row in standings])
    runs = {row.name: _runs(results[row.name], training) for row in standings if not row.diverged}
    means = {name: losses.mean(axis=0) for name, losses in runs.items()}
    labelled = [name for name in means if len(means) <= LABELLED or look[name] is not OTHER]

    split = "training data" if training else "held-out data"
    best = sorted(means, key=lambda name: means[name][-1])[:BANDS]
    winner = f": {best[0]} ends lowest" if len(means) > 1 else ""
    subtitle = f"{results.task.name}, every optimizer at its best learning rate; {_seeds(results, len(means))}"
    if grey := len(means) - len(labelled):
        subtitle += f"; grey: the other {grey}"
    height = max(5.2, 1.8 + 0.2 * len(labelled)) if means else 1.2
    figure = new_figure(height, f"Loss on {split}{winner}", subtitle)
    if lost := [row.name for row in standings if row.diverged]:
        footnote(figure, "Diverged at every learning rate: " + ", ".join(lost))
    if not means:
        return figure

    ends = {name: (float(means[name][-1]), f"{name}  {_digits(means[name][-1])}") for name in labelled}
    right = 0.7 + 0.084 * max(len(text) for _, text in ends.values())
    bottom = 0.9 if lost else 0.65
    axes = figure.add_subplot()
    figure.subplots_adjust(**margins(figure, left=0.75, right=right, bottom=bottom, top=0.85))
    axes.set_xlim(0, results.settings.steps)
    lower, upper = _loss_range(results, means)
    log_axis(axes, "y", lower, upper)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"loss ({results.task.loss_unit})")
    for name, mean in means.items():
        style, steps = look[name], results[name].eval_steps
        line = {"linestyle": style.dashes, "linewidth": style.width, "color": style.colour}
        axes.plot(steps, mean, zorder=style.layer, **line)
        if name in best or name == REFERENCE:
            _band(axes, steps, runs[name], style)
    label_ends(axes, ends, look)
    return figure


def sensitivity(results: RaceResults) -> Figure:
    """Final report loss against the learning rate, one panel for each optimizer, AdamW in all of them."""
    names = [row.name for row in leaderboard(results)]
    look = looks(names)
    finals = {name: _survivors(results[name]) for name in names}
    figure, panels = new_sheet(
        len(names),
        columns=4 if len(names) <= 12 else 5,
        aspect=0.75,
        title="How much the learning rate matters",
        subtitle=f"{results.task.name}, loss on held-out data after {results.settings.steps} steps; "
        f"ring: chosen rate; red cross: a seed diverged{'; thin line: AdamW' if REFERENCE in finals else ''}",
    )
    rates = np.concatenate([results[name].learning_rates for name in names])
    losses = np.concatenate([final.ravel() for final in finals.values()])
    finite = losses[np.isfinite(losses) & (losses > 0)]
    low, high = (finite.min(), finite.max()) if finite.size else (1.0, 1.0)
    room = 0.3 * np.log(high / low) + 0.03
    for name, panel in zip(names, panels, strict=True):
        log_axis(panel, "x", rates.min() / 2, rates.max() * 2, least=1)
        log_axis(panel, "y", low * np.exp(-room), high * np.exp(room))
        if not finite.size:
            panel.set_yticks([])
        title = {"color": INK if look[name] is OTHER else look[name].text}
        panel.set_title(name, size=9.5, loc="left", pad=4, **title)
        if name != REFERENCE and REFERENCE in finals:
            _sensitivity_line(panel, results[REFERENCE], finals[REFERENCE], look[REFERENCE], background=True)
        _sensitivity_line(panel, results[name], finals[name], look[name])
    figure.supxlabel("learning rate", size=9.5, color=GREY)
    figure.supylabel(f"final loss ({results.task.loss_unit})", size=9.5, color=GREY)
    return figure


def surface_sheet(paths: Mapping[str, surface.Trajectory]) -> Figure:
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
        panel.text(0, -0.9, end, size=8.5, ha="center", va="bottom", path_effects=[HALO], zorder=7)
    return figure


def surface_picture(name: str, path: surface.Trajectory) -> Figure:
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
    notes = {"size": 9.5, "path_effects": [HALO], "textcoords": "offset points", "zorder": 7}
    axes.annotate("start", surface.START, (8, 6), **notes)
    axes.annotate("minimum", surface.MINIMUM, (12, -4), **notes)
    if path.averaged is not None:
        trained, averaged = _widest_gap(path.points, path.averaged)
        away = (averaged - trained) / (np.linalg.norm(averaged - trained) + 1e-9)
        bold = notes | {"weight": "bold", "ha": "center", "va": "center"}
        axes.annotate("averaged", averaged, 22 * away, color=AVERAGED, **bold)
        axes.annotate("trained", trained, -22 * away, color=TRAINED, **bold)
    return figure


def _seeds(results: RaceResults, lines: int) -> str:
    seeds = len(results.settings.seeds)
    if seeds == 1:
        return "one seed"
    which = " of the best" + " and AdamW" * (REFERENCE in results.names) if lines > BANDS else ""
    return f"mean of {seeds} seeds; bands: range{which}"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _runs(result: OptimizerResult, training: bool) -> Floats:
    """[S, E] at the best learning rate; a diverged run stays where it began, as in the leaderboard."""
    losses = (result.train_loss if training else result.report_loss)[result.best]
    return np.where(result.diverged[result.best, :, None], losses[:, :1], losses)


def _survivors(result: OptimizerResult) -> Floats:
    """[L, S] final report losses, NaN where diverged."""
    return np.where(result.diverged, np.nan, result.report_loss[..., -1])


def _loss_range(results: RaceResults, means: Mapping[str, Floats]) -> tuple[float, float]:
    """From the lowest loss to the typical one after a tenth of the steps; includes the last of every line."""
    early = results.settings.steps / 10
    at = {name: np.searchsorted(results[name].eval_steps, early) for name in means}
    typical = np.median([mean[at[name]] for name, mean in means.items()])
    lowest = min(mean[mean > 0].min(initial=np.inf) for mean in means.values())
    highest = max(typical, *(mean[-1] for mean in means.values()))
    room = 0.08 * np.log(highest / lowest) + 0.01
    return float(lowest * np.exp(-room)), float(highest * np.exp(room))


def _band(axes: Axes, x: np.ndarray, runs: Floats, style: Look) -> None:
    low, high = runs.min(axis=0), runs.max(axis=0)
    axes.fill_between(x, low, high, color=style.colour, alpha=0.14, linewidth=0, zorder=style.layer - 3)


def _sensitivity_line(
    axes: Axes, result: OptimizerResult, finals: Floats, style: Look, *, background: bool = False
) -> None:
    """Mean over the surviving seeds, with a cross at the top for every learning rate that lost one."""
    alive = np.isfinite(finals).any(axis=1)
    rates, runs = result.learning_rates[alive], finals[alive]
    means = np.nanmean(runs, axis=1)
    if background:
        axes.plot(rates, means, color=INK, linewidth=1.0, alpha=0.45, zorder=2)
        return
    colour = GREY if style is OTHER else style.colour
    axes.plot(rates, means, color=colour, linewidth=1.8, marker="o", markersize=3.2, zorder=style.layer)
    axes.fill_between(rates, np.nanmin(runs, axis=1), np.nanmax(runs, axis=1), color=colour, alpha=0.16, linewidth=0)
    lost = result.learning_rates[result.diverged.any(axis=1)]
    crosses = axes.get_xaxis_transform()
    axes.plot(lost, np.full(lost.size, 0.93), "x", color=RED, markersize=5, transform=crosses, zorder=7)
    if alive[result.best]:
        rate = result.learning_rates[result.best]
        loss = float(np.nanmean(finals[result.best]))
        axes.plot(rate, loss, "o", markersize=8, markerfacecolor="none", markeredgecolor=INK, zorder=8)
        note = {"size": 8.5, "ha": "center", "va": "top", "path_effects": [HALO]}
        axes.annotate(f"{rate:.2g}", (rate, loss), (0, -7), textcoords="offset points", **note)


@functools.cache
def _terrain() -> tuple[Floats, Floats, Floats]:
    x, y = (np.linspace(low, high, 241) for low, high in zip(surface.LOWER, surface.UPPER, strict=True))
    height = np.asarray(surface.valley(np.stack(np.meshgrid(x, y))), dtype=np.float64)
    return x, y, np.log10(height + 1e-2)


def _widest_gap(points: surface.Points, others: surface.Points) -> tuple[surface.Points, surface.Points]:
    """The point of `others` that lies farthest from the path of `points`, after its nearest there."""
    distances = np.linalg.norm(others[:, None] - points[None], axis=-1)
    farthest = int(distances.min(axis=1).argmax())
    return points[int(distances[farthest].argmin())], others[farthest]


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
