"""Raw against averaged weights: one run, watched by every average of the library that leaves it as it is."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_zoo
from optax_zoo import Paper
from optax_zoo._core.averages import Average
from optax_zoo.race.averages_results import RAW, AveragesResults, AveragesSettings, Watched, standings
from optax_zoo.race.results import Floats
from optax_zoo.race.runner import PyTree, Runs, Track, over_runs
from optax_zoo.race.standings import choose_best, find_diverged
from optax_zoo.race.tasks import SPLITS, Problem

Evaluations = Mapping[str, Mapping[str, np.ndarray]]


class Watcher(Protocol):
    """Is told how the runs go, between compiled calls."""

    def starts(self, name: str) -> None:
        """Something is about to be compiled."""

    def advances(self, name: str, step: int, best_loss: float) -> None:
        """`best_loss`: lowest mean selection loss over learning rates and weights after `step` steps."""

    def keeps(self, name: str, outcome: str, seconds: float) -> None:
        """A schedule is done."""


def averages(steps: int) -> dict[str, Mapping[str, Any]]:
    """The averages that watch a run of so many steps, by name, with their arguments.

    They are the wrappers whose records say what suits the length of a run, whose states are averages, and which pass
    updates through.
    """
    wrappers = [paper for paper in optax_zoo.papers().values() if paper.kind == "wrapper" and paper.scaled]
    arguments = {paper.name: paper.arguments(steps) for paper in wrappers}
    return {name: known for name, known in arguments.items() if _only_watches(_average(name, known))}


def described(arguments: Mapping[str, Any]) -> str:
    """Arguments as they are written in a call."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def _average(name: str, arguments: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax_zoo.create(name, optax.identity(), **arguments))


def _only_watches(tx: optax.GradientTransformationExtraArgs) -> bool:
    """Whether the state is an average, and the updates that come out are, as variables, those that went in."""
    params = {"w": jnp.zeros((2, 2))}
    state = tx.init(params)
    if not isinstance(state, Average):
        return False
    passed = jax.make_jaxpr(lambda u, s, p: tx.update(u, s, p, value=jnp.zeros(()))[0])(params, state, params).jaxpr
    return passed.outvars[0] is passed.invars[0]


def watch(
    problem: Problem,
    paper: Paper,
    results: AveragesResults,
    keep: Callable[[AveragesResults], None],
    watcher: Watcher,
) -> AveragesResults:
    """Runs the schedules that `results` lacks, and hands the grown results to `keep` after each."""
    for schedule in results.settings.schedules:
        if schedule not in results.names:
            results = results.add(run(problem, paper, results.settings, schedule, watcher))
            keep(results)
    return results


def run(problem: Problem, paper: Paper, settings: AveragesSettings, schedule: str, watcher: Watcher) -> Watched:
    """Trains the raw weights at all learning rates, and again at the best of them with the averages watching."""
    begin = time.perf_counter()
    settings = dataclasses.replace(settings, schedule=schedule)
    watcher.starts(schedule)
    alone = Runs(Track(problem, settings), paper)
    losses = _follow(alone, lambda: {RAW: alone.evaluate()}, f"{schedule}, all rates", watcher)[RAW]
    best = choose_best(losses["train"], losses["selection"])

    at_best = dataclasses.replace(settings, learning_rates=(float(alone.rates[best]),))
    watcher.starts(schedule)
    seen = _follow(*_watched(Track(problem, at_best), paper), f"{schedule}, averages", watcher)
    watched = Watched(
        schedule=schedule,
        learning_rates=alone.rates,
        best=best,
        eval_steps=alone.track.boundaries.astype(np.int64),
        report_loss={name: values["report"][0] for name, values in seen.items()},
        diverged={name: find_diverged(*(values[split] for split in SPLITS))[0] for name, values in seen.items()},
        wall_seconds=time.perf_counter() - begin,
    )
    rows = standings(watched)
    lowest = next(iter(rows))
    outcome = f"raw {rows[RAW].loss:.4f}, lowest {lowest} {rows[lowest].loss:.4f} at learning rate "
    watcher.keeps(schedule, f"{outcome}{alone.rates[best]:.2g}", watched.wall_seconds)
    return watched


def _watched(track: Track, paper: Paper) -> tuple[Runs, Callable[[], Evaluations]]:
    """Runs of `paper` with averages behind it that see its final updates, and what evaluates all weights."""
    known = averages(track.settings.steps)
    watching = [(name, _average(name, arguments)) for name, arguments in known.items()]

    def make(learning_rate: Any, peak: Any = None) -> optax.GradientTransformation:
        return optax.named_chain((RAW, paper.build(learning_rate, peak=peak)), *watching)

    whole = dataclasses.replace(paper, kind="optimizer", make=make, example={}, peak_argument="peak")
    runs = Runs(track, whole, averages=False)

    def weights(carry: tuple[PyTree, Any]) -> dict[str, PyTree]:
        params, states = carry
        return {RAW: params} | {name: optax_zoo.eval_params(states[name], params) for name in known}

    all_weights = jax.jit(over_runs(weights, "run"))

    def evaluate() -> Evaluations:
        return {name: track.evaluate(params) for name, params in all_weights(runs.carry).items()}

    return runs, evaluate


def _follow(
    runs: Runs, evaluate: Callable[[], Evaluations], name: str, watcher: Watcher
) -> dict[str, dict[str, Floats]]:
    """Trains to the end: name of the weights -> losses by split, [L, S, E], NaN where they are not finite."""
    seen = [evaluate()]
    for first, last in itertools.pairwise(map(int, runs.track.boundaries)):
        runs.advance(first, last)
        seen.append(evaluate())
        means = [values["selection"].mean(axis=1) for values in seen[-1].values()]
        watcher.advances(name, last, float(np.fmin.reduce(means, axis=None)))
    return {weights: {split: _curve([at[weights][split] for at in seen]) for split in SPLITS} for weights in seen[0]}


def _curve(losses: list[Floats]) -> Floats:
    curve = np.stack(losses, axis=-1)
    return np.where(np.isfinite(curve), curve, np.nan)
