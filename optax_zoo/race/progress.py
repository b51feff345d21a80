"""What a race shows while it runs."""

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from optax_zoo.race.results import OptimizerResult
from optax_zoo.race.standings import final_losses


class LiveProgress:
    """A `Watcher` that shows optimizer, step, best loss and time, and keeps a line for each one done.

    Args:
      console: where to show it; only the lines of finished optimizers where it is not a terminal.
      done, total: optimizers already finished, and all of them.
      steps: of every optimizer.
      of: what is counted, in the plural.
    """

    def __init__(self, console: Console, done: int, total: int, steps: int, of: str = "optimizers"):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console
        self._all = self._progress.add_task("race", completed=done, total=total, note=of)
        self._one = self._progress.add_task("", total=steps, note="", visible=False)

    def __enter__(self) -> "LiveProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def starts(self, name: str) -> None:
        """An optimizer is about to be compiled."""
        self._progress.reset(self._one, description=f"  {name}", note="compiling", visible=True)

    def advances(self, name: str, step: int, best_loss: float) -> None:
        """Shows the step and the best loss of `name`."""
        note = f"steps, best loss {best_loss:.4f}" if math.isfinite(best_loss) else "steps, diverged so far"
        self._progress.update(self._one, description=f"  {name}", completed=step, note=note)

    def finishes(self, result: OptimizerResult) -> None:
        """Keeps one line about `result`."""
        rate = result.learning_rates[result.best]
        outcome = f"loss {final_losses(result).mean():.4f} at learning rate {rate:.2g}"
        if result.diverged[result.best].all():
            outcome = "every seed diverged"
        self.keeps(result.name, outcome, result.wall_seconds)

    def keeps(self, name: str, outcome: str, seconds: float) -> None:
        """One more of all is done, of which one line stays."""
        self._progress.advance(self._all)
        self._console.print(f"  {name:<24} {outcome}  ({seconds:.1f} s)", highlight=False, markup=False)
