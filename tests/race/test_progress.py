"""What is seen while a race runs."""

import io

import numpy as np
import pytest
from rich.console import Console

from optax_zoo.race.progress import LiveProgress
from tests.race.records import make_result

GOOD = make_result("lion", [[[2.0, 1.0, 0.25]], [[2.0, 1.0, 0.5]]])
BROKEN = make_result("lion", [[[2.0, np.nan, np.nan]]])


def show(result, best_loss, terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None)
    with LiveProgress(console, done=1, total=3, steps=40) as progress:
        progress.starts("lion")
        progress.advances("lion", 20, best_loss)
        progress.finishes(result)
    return file.getvalue()


def test_a_terminal_sees_optimizer_step_and_best_loss():
    shown = show(GOOD, 0.4321, terminal=True)
    for part in ("race", "1/3", "lion", "20/40", "best loss 0.4321"):
        assert part in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_finished_optimizer_leaves_a_line(terminal):
    assert "loss 0.2500 at learning rate 0.33  (3.0 s)" in show(GOOD, 0.4, terminal)


def test_a_log_file_gets_only_the_lines_of_finished_optimizers():
    assert len(show(GOOD, 0.4, terminal=False).splitlines()) == 1


def test_divergence_is_told_not_raised():
    shown = show(BROKEN, float("nan"), terminal=True)
    assert "diverged so far" in shown and "every seed diverged" in shown
