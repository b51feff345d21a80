"""Rules that orthogonalise on several devices: operations of one device and what travels, read from compiled programs.

Nothing is run. Devices are eight CPU devices of one process, parameters those of a size of `harness`, replicated or
with their rows spread over the devices. The share of operations is one device's matrix products over those of the
program for one device, in conditionals those of the dearest branch.
"""

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax import contrib

import optax_zoo as zoo
from benchmarks import contests, harness, hlo, results

DEVICES = 8
FIGURES = {
    "operations": "operations/device",
    "collectives": "collectives",
    "megabytes": "MB received",
    "alone_operations": "without shard_over",
    "alone_collectives": "collectives",
    "peer": "peer",
    "peer_operations": "operations/device",
    "peer_collectives": "collectives",
    "peer_megabytes": "MB received",
}
LAYOUTS = {"replicated": PartitionSpec(), "rows": PartitionSpec("data")}


def compiled(tx: optax.GradientTransformation, size: str, devices: int, spec: PartitionSpec) -> jax.stages.Compiled:
    """One step of training on a mesh of so many devices."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        cut = spec if leaf.ndim == 2 and leaf.shape[0] % devices == 0 else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, cut))

    params = jax.tree.map(place, harness.shapes(size))
    state = jax.tree.map(place, harness.state_of(tx, params))
    return harness.jitted_step(tx, ("params",)).lower(params, state, params).compile()


def figures(tx: optax.GradientTransformation, size: str, spec: PartitionSpec, operations: float) -> dict[str, float]:
    """Operations of one device as a part of all, collectives of a step and what they bring to a device."""
    program = compiled(tx, size, DEVICES, spec)
    traffic = hlo.traffic(program).values()
    return {
        "operations": results.rounded(hlo.flops(program) / operations),
        "collectives": sum(kind.count for kind in traffic),
        "megabytes": results.rounded(sum(kind.nbytes for kind in traffic) / 1e6),
    }


def measure(entry: zoo.Paper, contest: contests.Contest, size: str) -> list[results.Row]:
    """A row for each layout: a method shared out, the same on every device, and optax's Muon."""
    sharing = dataclasses.replace(contest, variant={**contest.variant, "shard_over": "data"})
    shared, alone = (contests.build(entry, each) for each in (sharing, contest))
    peer = contrib.muon(contests.LEARNING_RATE)
    operations = hlo.flops(compiled(alone, size, 1, PartitionSpec()))
    rows: list[results.Row] = []
    for layout, spec in LAYOUTS.items() if operations else ():
        row = {"method": f"{contests.label(entry, sharing)} {layout}", "library": entry.library, "size": size}
        row |= {"devices": DEVICES, "peer": "optax.contrib.muon"}
        for prefix, tx in {"": shared, "alone_": alone, "peer_": peer}.items():
            row |= {f"{prefix}{key}": value for key, value in figures(tx, size, spec, operations).items()}
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = results.command_line("sharing", __doc__, library="optax_zoo")
    parser.add_argument("--size", default="stack", choices=harness.SIZES, metavar="SIZE")
    options = parser.parse_args(arguments)
    path = results.destination("sharing", options.out)
    if not options.report:
        if jax.local_device_count() < DEVICES:
            raise SystemExit(f"set XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES}")
        for entry, contest in results.chosen(parser, options):
            if "shard_over" in inspect.signature(entry.make).parameters:
                rows = measure(entry, contest, "tiny" if options.quick else options.size)
                for row in rows:
                    print(f"{row['method']}: {row['operations']} of the operations", file=sys.stderr)
                results.save(path, "sharing", rows)
    print(results.report(path, FIGURES))


if __name__ == "__main__":
    main()
