"""Results of races that never ran."""

import numpy as np

from optax_zoo.race import results, standings


def make_result(name, curves, *, selection=None, accuracy=None):
    """Curves [L, S, E] of the report loss, and of the other two where they differ."""
    curves = np.asarray(curves, float)
    selection = curves if selection is None else np.asarray(selection, float)
    diverged = standings.find_diverged(curves, selection)
    return results.OptimizerResult(
        name=name,
        library="optax",
        learning_rates=np.arange(1.0, len(curves) + 1) / 3,
        eval_steps=np.arange(curves.shape[-1]) * 10,
        train_loss=selection,
        selection_loss=selection,
        report_loss=curves,
        accuracy=accuracy,
        diverged=diverged,
        best=standings.choose_best(selection, selection),
        step_seconds=0.01,
        relative_step_time=1.5,
        state_bytes_per_parameter=8.0,
        wall_seconds=3.0,
    )


def make_race(*optimizers):
    return results.RaceResults(
        task=results.Task("digits", "handwritten digits", "nats"),
        settings=results.Settings("digits", "abc", 20, 8, (0, 1, 2), 0.1, (0.5, 1.0), None, "decay"),
        versions={"jax": "0.10.2"},
        machine={"cpus": "2"},
        optimizers=optimizers,
    )
