"""Memory of `optax-zoo merge`: two checkpoints of GPT-2 small, half a GB each, merged in a process of its own.

The peak is the largest resident set that the system counted for that process; a process that only imports what the
command needs tells how much of it are libraries. A process inherits the peak of the one that starts it, which
therefore never holds a model: they are written elsewhere.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import harness, results
from optax_zoo.merging.command.checkpoints import Leaf
from optax_zoo.merging.command.safetensors_files import SafetensorsWriter

FIGURES = {
    "checkpoint_megabytes": "each, MB",
    "largest_leaf_megabytes": "largest leaf",
    "imports_megabytes": "imports",
    "peak_megabytes": "peak",
}
MERGES = {
    "uniform_soup": "{0} {1}",
    "model_stock": "{0} {1} --base {2}",
    "fisher_merge": "{0} {1} --fishers {2} {2}",
}
SUFFIXES = {"safetensors": ".safetensors", "orbax": ""}
PROGRAM = [sys.executable, "-m", "optax_zoo"]


def weights(size: str, seed: int) -> Any:
    """Random ones, all different, so that compression cannot help."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.random(leaf.shape, np.float32), harness.shapes(size))


def write(size: str, seed: int, path: Path) -> None:
    """A checkpoint of the format that the path's name says."""
    tree = weights(size, seed)
    if not path.suffix:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
        return
    named = [(jax.tree_util.keystr(keys, simple=True, separator="."), x) for keys, x in jax.tree.leaves_with_path(tree)]
    leaves = {name: Leaf(name, name, x.shape, x.dtype) for name, x in named}
    writer = SafetensorsWriter(path, leaves.values(), {})
    for name, x in named:
        writer.write(leaves[name], x)
    writer.close()


def peak_megabytes(command: Sequence[str]) -> float:
    """Largest resident set of a process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit / 1e6


def measure(name: str, form: str, size: str, folder: Path) -> results.Row:
    """One row: a method on checkpoints of one format."""
    paths = [folder / f"{form}_{seed}{SUFFIXES[form]}" for seed in range(3)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        for seed, path in enumerate(paths):
            if not path.exists():
                elsewhere.submit(write, size, seed, path).result()
    imports = peak_megabytes([sys.executable, "-c", "import optax_zoo, orbax.checkpoint, rich.progress"])
    arguments = MERGES[name].format(*paths).split()
    out = str(folder / f"{form}_merged{SUFFIXES[form]}")
    peak = peak_megabytes([*PROGRAM, "merge", name, *arguments, "--out", out, "--force"])
    shapes = jax.tree.leaves(harness.shapes(size))
    return {
        "method": f"{name}({form})",
        "library": "optax_zoo",
        "size": size,
        "checkpoint_megabytes": results.rounded(harness.nbytes(shapes) / 1e6),
        "largest_leaf_megabytes": results.rounded(max(harness.nbytes([leaf]) for leaf in shapes) / 1e6),
        "imports_megabytes": results.rounded(imports),
        "peak_megabytes": results.rounded(peak),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge_memory", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["uniform_soup"], choices=MERGES, help="which methods")
    parser.add_argument("--formats", nargs="+", default=[*SUFFIXES], choices=SUFFIXES, help="of the checkpoints")
    parser.add_argument("--quick", action="store_true", help="toy checkpoints: does it run at all?")
    parser.add_argument("--out", type=Path, help="JSON file; rows of the same machine and versions stay in it")
    parser.add_argument("--report", action="store_true", help="print the file's figures, measure nothing")
    options = parser.parse_args(arguments)
    path = results.destination("merge_memory", options.out)
    if not options.report:
        size = "tiny" if options.quick else "gpt2"
        for form in options.formats:
            with tempfile.TemporaryDirectory() as folder:
                rows = [measure(name, form, size, Path(folder)) for name in options.methods]
            results.save(path, "merge_memory", rows)
    print(results.report(path, FIGURES))


if __name__ == "__main__":
    main()
