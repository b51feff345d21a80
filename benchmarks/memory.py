"""Memory of one update: the optimizer's state and the compiler's temporaries, in bytes per parameter.

Nothing is run: the update is compiled for the shapes and XLA's own account of its buffers is read.
"""

from collections.abc import Sequence

import optax

import optax_zoo as zoo
from benchmarks import contests, harness, results

FIGURES = {
    "state_bytes": "state",
    "temporary_bytes": "temporaries",
    "unaliased_bytes": "not in place",
    "peer": "peer",
    "peer_state_bytes": "its state",
    "peer_temporary_bytes": "its temporaries",
}


def buffers(tx: optax.GradientTransformation, needs: Sequence[str], size: str) -> dict[str, float]:
    """Bytes per parameter: state, temporaries, and results that do not reuse a donated buffer."""
    params = harness.shapes(size)
    state = harness.state_of(tx, params)
    account = harness.jitted_step(tx, needs).lower(params, state, params).compile().memory_analysis()
    count = harness.parameters(params)
    return {
        "state_bytes": results.rounded(harness.nbytes(state) / count),
        "temporary_bytes": results.rounded(account.temp_size_in_bytes / count),
        "unaliased_bytes": results.rounded((account.output_size_in_bytes - account.alias_size_in_bytes) / count),
    }


def measure(entry: zoo.Paper, contest: contests.Contest, size: str) -> results.Row:
    """One row: the method and its peer."""
    row = {"method": contests.label(entry, contest), "library": entry.library, "size": size}
    row |= buffers(contests.build(entry, contest), entry.needs, size)
    if contest.make_peer:
        peer = buffers(contest.make_peer(contests.LEARNING_RATE), entry.needs, size)
        row |= {"peer": contest.peer, **{f"peer_{key}": value for key, value in peer.items()}}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = results.command_line("memory", __doc__)
    parser.add_argument("--size", default="blocks", choices=harness.SIZES, metavar="SIZE")
    options = parser.parse_args(arguments)
    path = results.destination("memory", options.out)
    if not options.report:
        for entry, contest in results.chosen(parser, options):
            results.save(path, "memory", [measure(entry, contest, "tiny" if options.quick else options.size)])
    print(results.report(path, FIGURES))


if __name__ == "__main__":
    main()
