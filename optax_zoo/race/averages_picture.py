"""The picture of raw and averaged weights: a panel for each schedule."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optax_zoo.race.averages_results import RAW, AveragesResults, Watched, curves, standings
from optax_zoo.race.drawing import (
    COLOURS,
    DASHES,
    INK,
    Look,
    label_ends,
    log_axis,
    margins,
    new_figure,
    shown,
)
from optax_zoo.race.results import Floats

NEUTRAL = Look("#85898e", "-", 2.6, 4)
WIDTH, HEIGHT = 10.5, 4.7  # inches


def picture(results: AveragesResults) -> Figure:
    """Held-out loss against steps: raw weights in grey, one colour for each average, the same in all panels."""
    settings = results.settings
    look = looks(settings.weights)
    figure = new_figure(
        HEIGHT,
        f"Raw and averaged weights of one run: {settings.optimizer} on {results.task.name}",
        f"held-out loss at the learning rate that is best for the raw weights; {_seeds(len(settings.seeds))}",
        width=WIDTH,
    )
    every = {run.schedule: curves(run) for run in results.runs}
    bounds = _bounds([*every.values()], results)
    longest = max(len(label) for run in results.runs for _, label in _ends(run).values())
    left, labels = 0.75, 0.75 + 0.07 * longest
    panel = (WIDTH - left) / len(every) - labels
    space = {**margins(figure, left=left, right=labels, bottom=0.6, top=1.0), "wspace": labels / panel}
    panels = figure.subplots(1, len(every), sharey=True, squeeze=False, gridspec_kw=space)[0]
    for axes, run in zip(panels, results.runs, strict=True):
        axes.set_title(_headline(run), size=10, loc="left", pad=8, color=INK)
        axes.set_xlim(0, settings.steps)
        log_axis(axes, "y", *bounds, least=2)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(f"loss ({results.task.loss_unit})" if run is results.runs[0] else "")
        _draw(axes, run, look)
    return figure


def looks(weights: Sequence[str]) -> Mapping[str, Look]:
    """Grey for the raw weights, the first; for every average a pair of colour and dashes."""
    averages = {
        name: Look(COLOURS[i % len(COLOURS)], DASHES[(i + i // len(COLOURS)) % len(DASHES)], 1.9, 5)
        for i, name in enumerate(weights[1:])
    }
    return {RAW: NEUTRAL, **averages}


def _draw(axes: Axes, run: Watched, look: Mapping[str, Look]) -> None:
    """A line for all weights, those of an average from where it leaves the raw ones."""
    means = {name: losses.mean(axis=0) for name, losses in curves(run).items()}
    for name, mean in means.items():
        style = look[name]
        apart = (mean != means[RAW]) | (name == RAW)
        begun = apart | np.append(apart[1:], True)
        line = {"linestyle": style.dashes, "linewidth": style.width, "color": style.colour}
        axes.plot(run.eval_steps[begun], mean[begun], zorder=style.layer, **line)
    label_ends(axes, _ends(run), look)


def _ends(run: Watched) -> dict[str, tuple[float, str]]:
    """The last mean loss of all weights, and their labels."""
    last = {name: float(losses[:, -1].mean()) for name, losses in curves(run).items()}
    return {name: (loss, f"{name}  {shown(loss)}") for name, loss in last.items()}


def _headline(run: Watched) -> str:
    rows = standings(run)
    first = next(iter(rows.values()))
    if first.diverged:
        return f"{run.schedule}: every seed diverged"
    if first.name == RAW:
        return f"{run.schedule}: no average below raw"
    clearly = first.comparison is not None and first.comparison.verdict == "better"
    return f"{run.schedule}: {first.name} ends lowest, {'' if clearly else 'not '}clearly below raw"


def _seeds(seeds: int) -> str:
    return f"mean of {seeds} seeds" if seeds > 1 else "one seed"


def _bounds(every: Sequence[Mapping[str, Floats]], results: AveragesResults) -> tuple[float, float]:
    """From the lowest loss to what raw weights have after a fifth of the steps, or to their last loss."""
    means = [losses.mean(axis=0) for run in every for losses in run.values()]
    low = min(mean[mean > 0].min(initial=np.inf) for mean in means)
    early = results.settings.steps / 5
    raw = [losses[RAW].mean(axis=0) for losses in every]
    high = max(
        max(np.interp(early, run.eval_steps, mean), mean[-1]) for run, mean in zip(results.runs, raw, strict=True)
    )
    room = 0.08 * np.log(high / low) + 0.01
    return float(low * np.exp(-room)), float(high * np.exp(room))
