"""Time of one update: against the bandwidth limit, and against the same rule in optax.

The limit of a method is the bytes of parameters and slots read and written once plus the gradients read once, over
the bandwidth of an in-place stream of the same process and the same round. Figures are medians over rounds of the
ratios within a round. The polar error of a method that orthogonalises is the distance of its matrices, scaled to norm
1, from those of the same iteration in float64.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

import optax_zoo as zoo
from benchmarks import contests, harness, results

FIGURES = {
    "milliseconds": "ms",
    "streams": "streams",
    "time_over_limit": "time/limit",
    "peer": "peer",
    "peer_over_limit": "peer/limit",
    "time_over_peer": "time/peer",
    "polar_error": "polar error",
    "peer_polar_error": "peer's",
}


def measure(entry: zoo.Paper, contest: contests.Contest, size: str, rounds: int, seconds: float) -> results.Row:
    """One row: the method, its peer and the stream in turns."""
    shapes = harness.shapes(size)
    params, grads = harness.arrays(size)
    transformations: list[optax.GradientTransformation] = [contests.build(entry, contest)]
    if contest.make_peer:
        transformations.append(contest.make_peer(contests.LEARNING_RATE))
    entries = harness.parameters(shapes)
    runs = [harness.stream(entries)]
    runs += [harness.training(tx, entry.needs, params, grads) for tx in transformations]
    stream, *times = harness.side_by_side(runs, rounds, seconds).T
    bandwidth = 8 * entries / stream
    moved = [harness.bytes_moved(tx, shapes) for tx in transformations]
    over_limit = [time / (count / bandwidth) for time, count in zip(times, moved, strict=True)]
    row: dict[str, Any] = {
        "method": contests.label(entry, contest),
        "library": entry.library,
        "size": size,
        "parameters": entries,
        "rounds": len(stream),
        "bandwidth_gb_per_s": results.rounded(np.median(bandwidth) / 1e9),
        "streams": results.rounded(moved[0] / 4 / entries),
        "milliseconds": results.rounded(1e3 * np.median(times[0])),
        "time_over_limit": results.rounded(np.median(over_limit[0])),
        "time_over_limit_quartiles": results.spread(over_limit[0]),
    }
    if contest.make_peer:
        ratio = times[0] / times[1]
        row |= {
            "peer": contest.peer,
            "peer_milliseconds": results.rounded(1e3 * np.median(times[1])),
            "peer_over_limit": results.rounded(np.median(over_limit[1])),
            "time_over_peer": results.rounded(np.median(ratio)),
            "time_over_peer_quartiles": results.spread(ratio),
        }
    polar = {
        "polar_error": contest.make_polar and contest.make_polar(**contest.variant),
        "peer_polar_error": contest.make_peer_polar and contest.make_peer_polar(),
    }
    row |= {key: results.rounded(harness.polar_error(tx, size)) if tx else None for key, tx in polar.items()}
    return row


def sizes_for(entry: zoo.Paper, sizes: Sequence[str]) -> list[str]:
    """Matrix methods run on the sizes meant for them, the others on the rest; the toy is for all."""
    return [size for size in sizes if size == "tiny" or (size == "blocks") == contests.is_matrix_method(entry)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = results.command_line("step_time", __doc__)
    parser.add_argument("--sizes", nargs="+", default=["layers", "blocks"], choices=harness.SIZES, metavar="SIZE")
    parser.add_argument("--rounds", type=int, default=15, help="most rounds of a contest")
    parser.add_argument("--seconds", type=float, default=5.0, help="no round of a contest starts after this time")
    options = parser.parse_args(arguments)
    path = results.destination("step_time", options.out)
    if not options.report:
        sizes = ["tiny"] if options.quick else options.sizes
        rounds, seconds = (3, 0.0) if options.quick else (options.rounds, options.seconds)
        for entry, contest in results.chosen(parser, options):
            for size in sizes_for(entry, sizes):
                row = measure(entry, contest, size, rounds, seconds)
                print(f"{row['method']} {size}: {row['time_over_limit']} of the limit", file=sys.stderr)
                results.save(path, "step_time", [row])
    print(results.report(path, FIGURES))


if __name__ == "__main__":
    main()
