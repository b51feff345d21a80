"""Time until the first step can run, for a model of 1000 leaves: tracing, lowering and compiling.

Relative to optax.adamw, and for matrix methods to optax.contrib.muon. Caches are emptied before every measurement.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np
import optax
from optax import contrib

import optax_zoo as zoo
from benchmarks import contests, harness, results

FIGURES = {
    "trace_seconds": "trace",
    "lower_seconds": "lower",
    "compile_seconds": "compile",
    "total_seconds": "total",
    "reference": "reference",
    "total_over_reference": "total/reference",
}

STAGES = ("trace", "lower", "compile")

REFERENCES = {
    False: ("optax.adamw", optax.adamw(contests.LEARNING_RATE)),
    True: ("optax.contrib.muon", contrib.muon(contests.LEARNING_RATE)),
}
"""Whether it is a matrix method -> what it is compared with."""

Entrants: TypeAlias = Mapping[str, tuple[zoo.Paper, contests.Contest]]


def stages(tx: optax.GradientTransformation, needs: Sequence[str], size: str) -> list[float]:
    """Seconds to trace, to lower and to compile one step from nothing."""
    params = harness.shapes(size)
    state = harness.state_of(tx, params)
    jax.clear_caches()
    clock = [time.perf_counter()]
    traced = harness.jitted_step(tx, needs).trace(params, state, params)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    lowered.compile()
    clock.append(time.perf_counter())
    return np.diff(clock).tolist()


def measure(entrants: Entrants, size: str, rounds: int) -> Iterator[list[results.Row]]:
    """After every round, one row an entrant; all of them and their references take turns."""
    references = {name: REFERENCES[contests.is_matrix_method(entry)] for name, (entry, _) in entrants.items()}
    calls = {name: (contests.build(*pair), pair[0].needs) for name, pair in entrants.items()}
    calls |= {name: (tx, ("params",)) for name, tx in references.values()}
    seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: -1 if index % 2 else 1]:
            seconds[name].append(stages(*calls[name], size))
            print(f"{name}: {sum(seconds[name][-1]):.2f} s", file=sys.stderr)
        yield [
            row(
                name,
                entry,
                references[name][0],
                size,
                {key: np.array(table) for key, table in seconds.items()},
            )
            for name, (entry, _) in entrants.items()
        ]


def row(name: str, entry: zoo.Paper, reference: str, size: str, seconds: Mapping[str, np.ndarray]) -> results.Row:
    """The medians of one entrant from (round, stage) tables."""
    total = seconds[name].sum(1)
    ratio = total / seconds[reference].sum(1)
    stage_medians = zip(STAGES, np.median(seconds[name], 0), strict=True)
    return {
        "method": name,
        "library": entry.library,
        "size": size,
        "leaves": len(jax.tree.leaves(harness.shapes(size))),
        "rounds": len(total),
        **{f"{stage}_seconds": results.rounded(value) for stage, value in stage_medians},
        "total_seconds": results.rounded(np.median(total)),
        "reference": reference,
        "total_over_reference": results.rounded(np.median(ratio)),
        "total_over_reference_quartiles": results.spread(ratio),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = results.command_line("compile_time", __doc__, library="optax_zoo")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    path = results.destination("compile_time", options.out)
    if not options.report:
        pairs = results.chosen(parser, options)
        entrants = {contests.label(*pair): pair for pair in pairs}
        size, rounds = ("tiny", 1) if options.quick else ("thousand", options.rounds)
        for rows in measure(entrants, size, rounds):
            results.save(path, "compile_time", rows)
    print(results.report(path, FIGURES))


if __name__ == "__main__":
    main()
