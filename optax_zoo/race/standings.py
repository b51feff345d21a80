"""From the raw runs of a race to its leaderboard: pure functions of `RaceResults`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from optax_zoo.race.results import REFERENCE, Bools, Floats, OptimizerResult, RaceResults

DIVERGENCE = 2.0
LEVEL = 0.05
MIN_SEEDS = 3

DIVERGENCE_RULE = (
    f"A run has diverged when any of its losses was not finite or its last loss is above {DIVERGENCE:g} "
    "times the first; it then counts with its loss and accuracy before training, and no seed is dropped."
)
SIGNIFICANCE_RULE = (
    "An optimizer differs from AdamW when the two-sided paired t-test over seeds (which share initialisation "
    f"and batches) on the final report loss stays below {LEVEL:g} after Holm's correction for all optimizers "
    f"of the race; fewer than {MIN_SEEDS} seeds decide nothing."
)


@dataclass(frozen=True)
class Comparison:
    """One optimizer against AdamW, or another reference, on the final report loss, paired by seed.

    Attributes:
      difference: mean over seeds of (this - reference); negative is better.
      p: of the paired t-test; None with fewer than three seeds.
      p_holm: corrected for all comparisons with this reference.
      verdict: "better", "worse", "unclear", or "too few seeds".
    """

    difference: float
    p: float | None
    p_holm: float | None
    verdict: str


@dataclass(frozen=True)
class Standing:
    """One row of the leaderboard, at the optimizer's best learning rate.

    Attributes:
      name, library: as in the registry.
      learning_rate: chosen on the selection split.
      at_edge: "lowest" or "highest" of the grid, where a wider grid might do better; None inside it.
      diverged_runs: seeds that diverged at this learning rate.
      seeds: number of seeds.
      loss, loss_spread: mean and sample standard deviation over seeds of the final report loss.
      accuracy, accuracy_spread: the same of the accuracy; None where the task has none.
      steps_to_reference: steps until the mean report loss is at AdamW's final one, interpolated between
        evaluations; infinite if it never is; None if all runs of either have diverged, or AdamW has not finished.
      comparison: against AdamW; None for AdamW itself.
      relative_step_time: over AdamW's.
      state_bytes_per_parameter: optimizer state over parameters.
    """

    name: str
    library: str
    learning_rate: float
    at_edge: str | None
    diverged_runs: int
    seeds: int
    loss: float
    loss_spread: float | None
    accuracy: float | None
    accuracy_spread: float | None
    steps_to_reference: float | None
    comparison: Comparison | None
    relative_step_time: float
    state_bytes_per_parameter: float

    @property
    def diverged(self) -> bool:
        """Whether no run at the chosen learning rate survived."""
        return self.diverged_runs == self.seeds


def find_diverged(*losses: Floats) -> Bools:
    """[L, S]: see `DIVERGENCE_RULE`; each of `losses` is [L, S, E]."""
    diverged = np.zeros(losses[0].shape[:2], dtype=bool)
    for loss in losses:
        with np.errstate(invalid="ignore"):
            diverged |= ~np.isfinite(loss).all(axis=-1) | (loss[..., -1] > DIVERGENCE * loss[..., 0])
    return diverged


def count_diverged_as_untrained(curves: Floats, diverged: Bools) -> Floats:
    """[L, S, E]: `curves`, with those of diverged runs staying at their first value."""
    return np.where(diverged[..., None], curves[..., :1], curves)


def choose_best(train_loss: Floats, selection_loss: Floats) -> int:
    """Index of the lowest mean final selection loss among learning rates with the fewest diverged seeds.

    The report split has no say in it, so that a run may diverge there alone at the learning rate chosen.
    """
    diverged = find_diverged(train_loss, selection_loss)
    final = count_diverged_as_untrained(selection_loss, diverged)[..., -1].mean(axis=-1)
    return int(np.lexsort((final, diverged.sum(axis=-1)))[0])


def final_losses(result: OptimizerResult) -> Floats:
    """[S]: final report loss at the best learning rate."""
    return report_curves(result)[:, -1]


def final_accuracies(result: OptimizerResult) -> Floats | None:
    """[S]: final accuracy at the best learning rate, of a diverged run that before training; None without any."""
    if result.accuracy is None:
        return None
    return count_diverged_as_untrained(result.accuracy, result.diverged)[result.best, :, -1]


def report_curves(result: OptimizerResult) -> Floats:
    """[S, E]: report loss at the best learning rate; a diverged run stays at its loss before training."""
    return count_diverged_as_untrained(result.report_loss, result.diverged)[result.best]


def steps_to_reach(result: OptimizerResult, target: float) -> float:
    """Steps until the mean report loss over seeds reaches `target`, interpolated; infinite if it never does."""
    mean = report_curves(result).mean(axis=0)
    reached = np.flatnonzero(mean <= target)
    if reached.size == 0:
        return math.inf
    after = int(reached[0])
    if after == 0:
        return 0.0
    before = after - 1
    share = (mean[before] - target) / (mean[before] - mean[after])
    return float(result.eval_steps[before] + share * (result.eval_steps[after] - result.eval_steps[before]))


def paired_p(differences: Floats) -> float | None:
    """Two-sided p of the paired t-test that `differences` [S] have mean zero; None with too few seeds."""
    n = differences.size
    if n < MIN_SEEDS:
        return None
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * stdtr(n - 1, -abs(mean) / (spread / math.sqrt(n))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors), 1.0)
    unordered = np.empty(len(p_values))
    unordered[order] = corrected
    return [float(p) for p in unordered]


def compare(race: RaceResults) -> Mapping[str, Comparison]:
    """Every optimizer but AdamW against AdamW; empty while AdamW has not finished."""
    if REFERENCE not in race.names:
        return {}
    baseline = final_losses(race[REFERENCE])
    differences = {
        result.name: final_losses(result) - baseline for result in race.optimizers if result.name != REFERENCE
    }
    return comparisons(differences)


def comparisons(differences: Mapping[str, Floats]) -> Mapping[str, Comparison]:
    """Each of `differences` [S] to a reference with the same seeds, corrected for all of them."""
    raw = {name: paired_p(difference) for name, difference in differences.items()}
    tested = [name for name, p in raw.items() if p is not None]
    corrected = dict(zip(tested, holm([p for p in raw.values() if p is not None]), strict=True))
    return {
        name: Comparison(
            difference=float(difference.mean()),
            p=raw[name],
            p_holm=corrected.get(name),
            verdict=_verdict(float(difference.mean()), corrected.get(name)),
        )
        for name, difference in differences.items()
    }


def leaderboard(race: RaceResults) -> list[Standing]:
    """The rows of the leaderboard, best final report loss first and fully diverged optimizers last."""
    comparisons = compare(race)
    target = _target(race[REFERENCE]) if REFERENCE in race.names else None
    rows = [_standing(result, comparisons.get(result.name), target) for result in race.optimizers]
    return sorted(rows, key=lambda row: (row.diverged, row.loss))


def _target(reference: OptimizerResult) -> float | None:
    """Mean final report loss, rounded as `steps_to_reach` rounds it; None if all runs have diverged."""
    if reference.diverged[reference.best].all():
        return None
    return float(report_curves(reference).mean(axis=0)[-1])


def _standing(result: OptimizerResult, comparison: Comparison | None, target: float | None) -> Standing:
    losses = final_losses(result)
    accuracy = final_accuracies(result)
    diverged_runs = int(result.diverged[result.best].sum())
    lost = diverged_runs == losses.size
    return Standing(
        name=result.name,
        library=result.library,
        learning_rate=float(result.learning_rates[result.best]),
        at_edge=edge(result.learning_rates, result.best),
        diverged_runs=diverged_runs,
        seeds=losses.size,
        loss=float(losses.mean()),
        loss_spread=spread(losses),
        accuracy=None if accuracy is None else float(accuracy.mean()),
        accuracy_spread=None if accuracy is None else spread(accuracy),
        steps_to_reference=None if target is None or lost else steps_to_reach(result, target),
        comparison=comparison,
        relative_step_time=result.relative_step_time,
        state_bytes_per_parameter=result.state_bytes_per_parameter,
    )


def edge(learning_rates: Floats, best: int) -> str | None:
    """Where the best rate is at the edge of a grid: "lowest" or "highest"."""
    if learning_rates.size < 2:
        return None
    return {0: "lowest", learning_rates.size - 1: "highest"}.get(best)


def spread(values: Floats) -> float | None:
    """The sample standard deviation; None of one value."""
    return float(values.std(ddof=1)) if values.size > 1 else None


def _verdict(difference: float, p_holm: float | None) -> str:
    if p_holm is None:
        return "too few seeds"
    if p_holm > LEVEL:
        return "unclear"
    return "better" if difference < 0 else "worse"
