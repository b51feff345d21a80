"""Trains each optimizer at all learning rates and with all seeds at once, inside one jitted scan."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_zoo
from optax_zoo import Paper
from optax_zoo._core.averages import Average
from optax_zoo.race.results import REFERENCE, OptimizerResult, RaceResults, Settings
from optax_zoo.race.schedules import schedule
from optax_zoo.race.standings import choose_best, find_diverged
from optax_zoo.race.tasks import SPLITS, Problem

EVALUATIONS = 20
TIMED_CHUNKS = 5
SUPPLIED = frozenset({"params", "value", "grad", "value_fn", "grad_fn", "hvp_fn", "key"})

PyTree = Any
Carry = tuple[PyTree, PyTree]


class Watcher(Protocol):
    """Is told how the race goes, between compiled calls."""

    def starts(self, name: str) -> None:
        """An optimizer is about to be compiled."""

    def advances(self, name: str, step: int, best_loss: float) -> None:
        """`best_loss`: lowest mean selection loss over the learning rates after `step` steps."""

    def finishes(self, result: OptimizerResult) -> None:
        """An optimizer is done."""


def learning_rates(paper: Paper, settings: Settings) -> np.ndarray:
    """float64 [L], increasing: the grid around the method's own start, or the absolute values asked for."""
    if settings.learning_rates is not None:
        return np.sort(np.asarray(settings.learning_rates))
    return np.sort(np.asarray(settings.grid)) * settings.base_learning_rate * paper.relative_learning_rate


def missing_arguments(paper: Paper) -> tuple[str, ...]:
    """Extra arguments that the method needs and a race does not supply."""
    return tuple(name for name in paper.needs if name not in SUPPLIED)


class Track:
    """What all optimizers of a race share: initial parameters, batches, keys, and the evaluation.

    Attributes:
      problem, settings: of the race.
      initial: parameters with a leading axis [S].
      batches: int32 [S, steps, batch_size].
      keys: [S] PRNG keys for methods that draw random numbers.
      boundaries: [E] steps taken before each evaluation.
    """

    def __init__(self, problem: Problem, settings: Settings):
        self.problem, self.settings = problem, settings
        roots = jnp.stack([jax.random.key(seed) for seed in settings.seeds])
        pairs = jax.vmap(jax.random.split)(roots)
        self.initial = jax.jit(jax.vmap(problem.init))(pairs[:, 0])
        self.keys = pairs[:, 1]
        self.batches = np.stack([problem.batches(seed, settings.steps) for seed in settings.seeds])
        chunk = -(-settings.steps // EVALUATIONS)
        self.boundaries = np.unique(np.append(np.arange(0, settings.steps, chunk), settings.steps))
        self._evaluate = jax.jit(over_runs(self._evaluate_run, "run", "nothing"))
        self._reference: Runs | None = None

    def evaluate(self, params: PyTree) -> dict[str, np.ndarray]:
        """Losses by split, and "accuracy" where it applies, each [L, S], of parameters with axes [L, S]."""
        values = self._evaluate(params, self.problem.held)
        return {name: np.asarray(value, np.float64) for name, value in values.items()}

    def _evaluate_run(self, params: PyTree, held: dict[str, tuple[jax.Array, ...]]) -> dict[str, jax.Array]:
        values = {split: self.problem.loss(params, *held[split]) for split in SPLITS}
        if self.problem.accuracy is not None:
            values["accuracy"] = self.problem.accuracy(params, *held["report"])
        return values

    def reference(self) -> "Runs":
        """AdamW, compiled once, to be timed beside the others."""
        if self._reference is None:
            self._reference = Runs(self, optax_zoo.paper(REFERENCE))
        return self._reference


def over_runs(function: Callable[..., Any], *differs: str) -> Callable[..., Any]:
    """Maps `function` over learning rates and seeds; its results have the leading axes [L, S].

    `differs` says with what each argument differs: "run" (axes [L, S]), "rate" ([L]), "seed" ([S]), "nothing".
    """
    over_seeds = jax.vmap(function, tuple(0 if of in ("run", "seed") else None for of in differs))
    return jax.vmap(over_seeds, tuple(0 if of in ("run", "rate") else None for of in differs))


class Runs:
    """All runs of one optimizer, compiled: axes [L, S] in front of parameters and state.

    Attributes:
      rates: float64 [L].
      state_bytes_per_parameter: of one run.
    """

    def __init__(self, track: Track, paper: Paper, averages: bool | None = None):
        """Compiles; `averages` says whether the schedule takes `paper` for one that averages, None: if it does."""
        self.track, self.paper = track, paper
        self.rates = learning_rates(paper, track.settings)
        self._rates = jnp.asarray(self.rates, jnp.float32)
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), track.initial)
        state = jax.eval_shape(lambda params: paper.build(1.0).init(params), one)
        self._averages = averages_parameters(state) if averages is None else averages
        self.state_bytes_per_parameter = _size(state, in_bytes=True) / _size(one)

        self._start = jax.jit(over_runs(self._start_run, "run", "rate"))
        self._evaluated = jax.jit(over_runs(lambda carry: optax_zoo.eval_params(carry[1], carry[0]), "run"))
        self.carry: Carry = self.start()
        train = over_runs(self._train_run, "run", "rate", "seed", "seed", "nothing", "nothing")
        train = jax.jit(train, donate_argnums=0)
        lengths = {int(length) for length in np.diff(track.boundaries)}
        self._train = {length: train.lower(self.carry, *self._inputs(0, length)).compile() for length in lengths}

    def start(self) -> Carry:
        """Parameters and state before the first step."""
        shape = (len(self.rates),)
        params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape + leaf.shape), self.track.initial)
        return self._start(params, self._rates)

    def advance(self, first: int, last: int) -> float:
        """Takes the steps from `first` to `last` in all runs; returns the seconds."""
        inputs = self._inputs(first, last)
        begin = time.perf_counter()
        self.carry = jax.block_until_ready(self._train[last - first](self.carry, *inputs))
        return time.perf_counter() - begin

    def evaluate(self) -> dict[str, np.ndarray]:
        """As `Track.evaluate`, at the parameters that the method wants to be evaluated."""
        return self.track.evaluate(self._evaluated(self.carry))

    def _transformation(self, rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        settings = self.track.settings
        return self.paper.build(schedule(settings.schedule, rate, settings.steps, self._averages), peak=rate)

    def _start_run(self, params: PyTree, rate: jax.Array) -> Carry:
        return params, self._transformation(rate).init(params)

    def _train_run(
        self, carry: Carry, rate: jax.Array, index: jax.Array, key: jax.Array, first: jax.Array, train: PyTree
    ) -> Carry:
        problem = self.track.problem
        step = optax_zoo.train_step(problem.loss, self._transformation(rate))

        def body(carry: Carry, at: tuple[jax.Array, jax.Array]) -> tuple[Carry, None]:
            count, chosen = at
            batch = problem.take(train, chosen)
            params, state, _ = step(*carry, *batch, key=jax.random.fold_in(key, count))
            return (params, state), None

        return jax.lax.scan(body, carry, (first + jnp.arange(len(index)), index))[0]

    def _inputs(self, first: int, last: int) -> tuple[Any, ...]:
        index = jnp.asarray(self.track.batches[:, first:last])
        return self._rates, index, self.track.keys, jnp.asarray(first, jnp.int32), self.track.problem.train


def run(track: Track, paper: Paper, watcher: Watcher) -> OptimizerResult:
    """Trains, evaluates and times one optimizer.

    AdamW takes the same steps right after each of the first chunks, so that both times are of the same moment;
    the median of their ratios is reported.
    """
    begin = time.perf_counter()
    watcher.starts(paper.name)
    runs = Runs(track, paper)
    reference = runs if paper.name == REFERENCE else track.reference()
    if reference is not runs:
        reference.carry = reference.start()
    seen = [runs.evaluate()]
    seconds, ratios = [], []
    for first, last in zip(track.boundaries, track.boundaries[1:], strict=False):
        spent = runs.advance(int(first), int(last))
        seconds.append(spent / (last - first))
        if reference is not runs and len(ratios) < TIMED_CHUNKS:
            ratios.append(spent / reference.advance(int(first), int(last)))
        seen.append(runs.evaluate())
        watcher.advances(paper.name, int(last), float(np.fmin.reduce(seen[-1]["selection"].mean(axis=1))))
    curves = {name: np.stack([values[name] for values in seen], axis=-1) for name in seen[0]}
    finite = {name: np.where(np.isfinite(curve), curve, np.nan) for name, curve in curves.items()}
    result = OptimizerResult(
        name=paper.name,
        library=paper.library,
        learning_rates=runs.rates,
        eval_steps=track.boundaries.astype(np.int64),
        train_loss=finite["train"],
        selection_loss=finite["selection"],
        report_loss=finite["report"],
        accuracy=finite.get("accuracy"),
        diverged=find_diverged(*(finite[split] for split in SPLITS)),
        best=choose_best(finite["train"], finite["selection"]),
        step_seconds=statistics.median(seconds),
        relative_step_time=statistics.median(ratios) if ratios else 1.0,
        state_bytes_per_parameter=runs.state_bytes_per_parameter,
        wall_seconds=time.perf_counter() - begin,
    )
    watcher.finishes(result)
    return result


def race(
    track: Track,
    entrants: Iterable[Paper],
    results: RaceResults,
    keep: Callable[[RaceResults], None],
    watcher: Watcher,
) -> RaceResults:
    """Runs the entrants that `results` lacks, and hands the grown results to `keep` after each."""
    for paper in entrants:
        if paper.name not in results.names:
            results = results.add(run(track, paper, watcher))
            keep(results)
    return results


def averages_parameters(state: PyTree) -> bool:
    """Whether an optimizer state knows better weights than the ones being trained."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Average))
    return any(isinstance(node, Average) for node in nodes)


def _size(tree: PyTree, in_bytes: bool = False) -> int:
    return sum(leaf.size * (leaf.dtype.itemsize if in_bytes else 1) for leaf in jax.tree.leaves(tree))
