"""Rules that orthogonalise on several devices: operations of one device and what travels, read from compiled programs.

Nothing is run. Devices are eight CPU devices of one process, parameters those of a size of `harness`, replicated or
with their rows spread over the devices. The share of operations is one device's over those of a program for one device,
without conditionals' cheaper branches and with the bodies of loops counted once.
"""

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


def measure(entry: zoo.Paper, size: str, layout: str) -> results.Row:
    """One row: a method shared out, the same on every device, and optax's Muon, with parameters laid out in one way."""

    def build(**arguments: Any) -> optax.GradientTransformation:
        known = inspect.signature(entry.make).parameters
        plain = {"method": "plain"} if "method" in known else {}
        return contests.build(entry, contests.Contest(variant={**plain, **arguments}))

    all_operations = hlo.flops(compiled(build(), size, 1, PartitionSpec()))
    spec = LAYOUTS[layout]
    alone, peer = (figures(tx, size, spec, all_operations) for tx in (build(), contrib.muon(contests.LEARNING_RATE)))
    return {
        "method": f"{entry.name}(shard_over='data') {layout}",
        "library": entry.library,
        "size": size,
        "devices": DEVICES,
        **figures(build(shard_over="data"), size, spec, all_operations),
        **{f"alone_{key}": value for key, value in alone.items()},
        "peer": "optax.contrib.muon",
        **{f"peer_{key}": value for key, value in peer.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = results.command_line("sharing", __doc__, library="optax_zoo")
    parser.add_argument("--size", default="stack", choices=harness.SIZES, metavar="SIZE")
    options = parser.parse_args(arguments)
    path = results.destination("sharing", options.out)
    if not options.report:
        if jax.local_device_count() < DEVICES:
            raise SystemExit(f"set XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES}")
        for entry in {entry.name: entry for entry, _ in results.chosen(parser, options)}.values():
            for layout in LAYOUTS if "shard_over" in inspect.signature(entry.make).parameters else ():
                row = measure(entry, "tiny" if options.quick else options.size, layout)
                print(f"{row['method']}: {row['operations']} of the operations", file=sys.stderr)
                results.save(path, "sharing", [row])
    print(results.report(path, FIGURES))


if __name__ == "__main__":
    main()
