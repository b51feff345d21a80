"""The pictures of a race: loss curves, sensitivity to the learning rate, paths in two dimensions."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optax_zoo.race import surface, surface_pictures
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
    note,
    save,
    shown,
)
from optax_zoo.race.results import REFERENCE, Floats, OptimizerResult, RaceResults
from optax_zoo.race.standings import Standing, count_diverged_as_untrained, leaderboard

LABELLED = 30
BANDS = 3
OFF_SCALE = 5.0


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
            figures["surface.png"] = surface_pictures.sheet(paths)
        figures |= {f"surface/{name}.png": surface_pictures.picture(name, path) for name, path in paths.items()}
        return save(figures, folder)


def curves(results: RaceResults, *, training: bool = False) -> Figure:
    """Loss against steps of every optimizer at its best learning rate, on the report or training split."""
    standings = leaderboard(results)
    look = looks([row.name for row in standings])
    runs = {row.name: _runs(results[row.name], training) for row in standings if not row.diverged}
    means = {name: losses.mean(axis=0) for name, losses in runs.items()}
    ranked = sorted(means, key=lambda name: means[name][-1])
    labelled = [name for name in ranked if len(means) <= LABELLED or look[name] is not OTHER]

    title = f"{'Training' if training else 'Held-out'} loss"
    if len(ranked) > 1:
        title += f": {ranked[0]} ends lowest" + ("" if training else _clearly(standings[0]))
    subtitle = f"{results.task.name}, every optimizer at its best learning rate; {_seeds(results, len(means))}"
    if grey := len(means) - len(labelled):
        subtitle += f"; grey: the other {grey}"
    height = max(5.2, 1.8 + 0.2 * len(labelled)) if means else 1.2
    figure = new_figure(height, title, subtitle)
    if lost := [row.name for row in standings if row.diverged]:
        footnote(figure, "Every seed diverged: " + ", ".join(lost))
    if not means:
        return figure

    ends = {name: (float(means[name][-1]), f"{name}  {shown(means[name][-1])}") for name in labelled}
    right = 0.8 + 0.084 * max(len(text) for _, text in ends.values())
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
        if name in ranked[:BANDS] or name == REFERENCE:
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
        log_axis(panel, "x", rates.min() / 2, rates.max() * 2, least=min(np.unique(rates).size, 2))
        log_axis(panel, "y", low * np.exp(-room), high * np.exp(room))
        if not finite.size:
            panel.set_yticks([])
        panel.set_title(name, size=9.5, loc="left", pad=4).set_color(_name_colour(look[name]))
        if name != REFERENCE and REFERENCE in finals:
            _sensitivity_line(panel, results[REFERENCE], finals[REFERENCE], look[REFERENCE], background=True)
        _sensitivity_line(panel, results[name], finals[name], look[name])
    figure.supxlabel("learning rate", size=9.5, color=GREY)
    figure.supylabel(f"final loss ({results.task.loss_unit})", size=9.5, color=GREY)
    return figure


def _clearly(first: Standing) -> str:
    if first.comparison is None:
        return ""
    return ", clearly below AdamW" if first.comparison.verdict == "better" else ", not clearly below AdamW"


def _seeds(results: RaceResults, lines: int) -> str:
    seeds = len(results.settings.seeds)
    if seeds == 1:
        return "one seed"
    which = " of the best" + " and AdamW" * (REFERENCE in results.names) if lines > BANDS else ""
    return f"mean of {seeds} seeds; bands: range{which}"


def _runs(result: OptimizerResult, training: bool) -> Floats:
    """[S, E] at the best learning rate; a diverged run stays where it began, as in the leaderboard."""
    losses = result.train_loss if training else result.report_loss
    return count_diverged_as_untrained(losses, result.diverged)[result.best]


def _name_colour(style: Look) -> str:
    return INK if style is OTHER else style.text


def _survivors(result: OptimizerResult) -> Floats:
    """[L, S] final report losses, NaN where diverged."""
    return np.where(result.diverged, np.nan, result.report_loss[..., -1])


def _loss_range(results: RaceResults, means: Mapping[str, Floats]) -> tuple[float, float]:
    """From the lowest loss to the typical one after a tenth of the steps, or to the highest last one.

    A last loss above `OFF_SCALE` times the typical last one does not count.
    """
    early = results.settings.steps / 10
    typical = np.median([np.interp(early, results[name].eval_steps, mean) for name, mean in means.items()])
    lowest = min(mean[mean > 0].min(initial=np.inf) for mean in means.values())
    ends = np.array([mean[-1] for mean in means.values()])
    highest = max(typical, ends[ends <= OFF_SCALE * np.median(ends)].max())
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
    if result.best in np.flatnonzero(alive):
        rate = result.learning_rates[result.best]
        loss = float(np.nanmean(finals[result.best]))
        axes.plot(rate, loss, "o", markersize=8, markerfacecolor="none", markeredgecolor=INK, zorder=8)
        note(axes, f"{rate:.2g}", (rate, loss), (0, -7), size=8.5, ha="center", va="top")
