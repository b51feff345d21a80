"""What `optax-zoo race --averages` leaves behind: the losses of one run, seen through every average."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from optax_zoo.race.results import Bools, Floats, Ints, Record, Settings
from optax_zoo.race.schedules import CONSTANT
from optax_zoo.race.standings import Comparison, comparisons, count_diverged_as_untrained, spread

RAW = "raw"


@dataclass(frozen=True)
class AveragesSettings(Settings):
    """Those of a race, and `optimizer` by name; `averages` maps names to their arguments."""

    optimizer: str
    averages: Mapping[str, str]

    @property
    def schedules(self) -> tuple[str, ...]:
        """A constant one, and the one asked for."""
        return tuple(dict.fromkeys((CONSTANT, self.schedule)))

    @property
    def weights(self) -> tuple[str, ...]:
        """What is evaluated: the raw weights first."""
        return (RAW, *self.averages)


@dataclass(frozen=True, eq=False)
class Watched:
    """The runs with one schedule, axes S seeds and E evaluations.

    Attributes:
      schedule: its name.
      learning_rates: [L], increasing, of which one was chosen.
      best: index into `learning_rates`, chosen on the selection split for the raw weights.
      eval_steps: [E], optimizer steps taken before each evaluation; starts at 0.
      report_loss: name of the weights -> [S, E], on the split that is reported; of a diverged run as it was.
      diverged: name of the weights -> [S], see `optax_zoo.race.standings.find_diverged`.
      wall_seconds: everything that was spent on this schedule.
    """

    schedule: str
    learning_rates: Floats
    best: int
    eval_steps: Ints
    report_loss: Mapping[str, Floats]
    diverged: Mapping[str, Bools]
    wall_seconds: float


@dataclass(frozen=True, eq=False)
class AveragesResults(Record):
    """All schedules that are done."""

    FORMAT = "optax-zoo averages 1"
    FILE_NAME = "averages.json"
    PARTS = "schedules"

    settings: AveragesSettings
    runs: tuple[Watched, ...] = ()

    def __getitem__(self, schedule: str) -> Watched:
        for run in self.runs:
            if run.schedule == schedule:
                return run
        raise KeyError(schedule)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the schedules that are done."""
        return tuple(run.schedule for run in self.runs)

    def add(self, run: Watched) -> "AveragesResults":
        """These results and one more schedule."""
        return dataclasses.replace(self, runs=(*self.runs, run))

    def check(self) -> None:
        """See `Record`."""
        settings = self.settings
        for run in self.runs:
            steps, seeds, where = run.eval_steps, len(settings.seeds), f"of {run.schedule}"
            if run.schedule not in settings.schedules:
                raise ValueError(f"{run.schedule} is none of its schedules")
            if not steps.size or steps[0] != 0 or steps[-1] != settings.steps or (steps[1:] <= steps[:-1]).any():
                raise ValueError(f"eval_steps {where} do not grow from 0 to {settings.steps}")
            if not 0 <= run.best < run.learning_rates.size:
                raise ValueError(f"best {where} is {run.best}, not in [0, {run.learning_rates.size})")
            for name, arrays, shape in (
                ("report_loss", run.report_loss, (seeds, steps.size)),
                ("diverged", run.diverged, (seeds,)),
            ):
                if set(arrays) != set(settings.weights):
                    raise ValueError(f"{name} {where} is of {', '.join(arrays)}, not of {', '.join(settings.weights)}")
                for weights, array in arrays.items():
                    if array.shape != shape:
                        raise ValueError(f"{name} {where}, {weights}, has shape {array.shape}, not {shape}")


@dataclass(frozen=True)
class AverageStanding:
    """One kind of weights after the last step of the runs with one schedule.

    Attributes:
      name: "raw", or the average's in the registry.
      loss, loss_spread: mean and sample standard deviation over seeds of the final report loss.
      diverged_runs, seeds: how many.
      comparison: against the raw weights; None for these.
    """

    name: str
    loss: float
    loss_spread: float | None
    diverged_runs: int
    seeds: int
    comparison: Comparison | None

    @property
    def diverged(self) -> bool:
        """Whether no run survived."""
        return self.diverged_runs == self.seeds


def curves(run: Watched) -> dict[str, Floats]:
    """[S, E] report losses by weights; those of a diverged run stay at its loss before training."""
    return {name: count_diverged_as_untrained(losses, run.diverged[name]) for name, losses in run.report_loss.items()}


def standings(run: Watched) -> dict[str, AverageStanding]:
    """Every kind of weights by name, best final report loss first and fully diverged ones last."""
    finals = {name: losses[:, -1] for name, losses in curves(run).items()}
    compared = comparisons({name: final - finals[RAW] for name, final in finals.items() if name != RAW})
    rows = [
        AverageStanding(
            name=name,
            loss=float(final.mean()),
            loss_spread=spread(final),
            diverged_runs=int(run.diverged[name].sum()),
            seeds=final.size,
            comparison=compared.get(name),
        )
        for name, final in finals.items()
    ]
    return {row.name: row for row in sorted(rows, key=lambda row: (row.diverged, row.loss))}
