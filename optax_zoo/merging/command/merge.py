"""What `optax-zoo merge` does with its arguments: one leaf after the other, of all checkpoints."""

import argparse
import contextlib
import gc
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from optax_zoo.merging.command import output
from optax_zoo.merging.command.checkpoints import (
    SUFFIX,
    Checkpoint,
    Group,
    Leaf,
    Place,
    open_checkpoint,
    read,
    refuse_differences,
)
from optax_zoo.merging.command.errors import MergeError
from optax_zoo.merging.command.methods import PARTS, Method, Values
from optax_zoo.race.errors import printable


def merge(method: Method, options: argparse.Namespace) -> int:
    """Merges the checkpoints that `options` name.

    Returns:
      Exit status.

    Raises:
      MergeError: something the user can put right.
    """
    console, start = Console(), time.perf_counter()
    given = {part: getattr(options, part) for part in method.parts}
    paths = {part: found if isinstance(found, list) else [found] for part, found in given.items() if found is not None}
    with _on_the_host():
        values = method.values(vars(options))
        method.rehearse({part: len(found) for part, found in paths.items()}, values)
        output.refuse_existing(options.out, options.force)
        groups = {
            part: Group(part, [open_checkpoint(path) for path in found], PARTS[part].same_dtype)
            for part, found in paths.items()
        }
        first = next(groups[part] for part in groups if PARTS[part].positional).checkpoints[0]
        for group in groups.values():
            refuse_differences(first, group)
        method.refuse_unmatched(vars(options), first.leaves)
        with output.replacing(options.out, options.force) as new, LiveMerge(console, method, first) as progress:
            stream(method, groups, first, values, new, progress)
    size, seconds = sum(leaf.nbytes for leaf in first.leaves.values()), time.perf_counter() - start
    console.print(
        f"wrote {printable(options.out)}: {len(first.leaves)} leaves, {readable(size)}, in {seconds:.1f} s",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


def stream(
    method: Method, groups: Mapping[str, Group], first: Checkpoint, values: Values, new: Path, progress: "LiveMerge"
) -> None:
    """Writes the merged checkpoint to `new`, holding one leaf of each checkpoint at a time."""

    def rows(part: str) -> Iterator[list[NDArray[Any]]]:
        for leaf in first.leaves.values():
            if leaf.floating:
                progress.reads(leaf)
                yield [read(checkpoint, checkpoint.leaves[leaf.name]) for checkpoint in groups[part].checkpoints]

    values = method.first_pass(rows, values, {part: len(group.checkpoints) for part, group in groups.items()})
    with contextlib.closing(writer(first, new)) as out:
        for leaf in first.leaves.values():
            progress.starts(leaf)
            array = merged(method, groups, values, leaf)
            gc.collect(0)  # JAX frees arrays that its threads were the last to use only on a collection
            out.write(leaf, array)
            progress.finishes()


def merged(method: Method, groups: Mapping[str, Group], values: Values, leaf: Leaf) -> NDArray[Any]:
    """The array of one leaf in the new checkpoint."""
    arrays: dict[str, Any] = {}
    for part, group in groups.items():
        held = [read(checkpoint, checkpoint.leaves[leaf.name]) for checkpoint in group.checkpoints]
        arrays[part] = held if PARTS[part].several else held[0]
    return np.asarray(method(leaf.name, arrays, values))


def writer(first: Checkpoint, new: Path) -> Any:
    """What writes leaves like those of `first` to `new`, in the format that its name says."""
    if new.name.endswith(SUFFIX):
        from optax_zoo.merging.command.safetensors_files import SafetensorsFiles, SafetensorsWriter

        others = [x for x in jax.tree.leaves(first.tree()) if not isinstance(x, Place)]
        if others:
            raise MergeError(f"{first.path} holds the text {others[0]!r}, which a safetensors file cannot")
        kept = isinstance(first, SafetensorsFiles)
        leaves = [x if kept else x._replace(spelling=x.name.replace("/", ".")) for x in first.leaves.values()]
        return SafetensorsWriter(new, leaves, first.metadata())
    from optax_zoo.merging.command.orbax_folders import OrbaxWriter

    return OrbaxWriter(new, first.leaves, first.tree())


@contextlib.contextmanager
def _on_the_host() -> Iterator[None]:
    """Keeps off accelerators, which may be busy training, unless the user named one; 64-bit leaves stay so."""
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    with jax.enable_x64(True):
        yield


class LiveMerge:
    """Shows which leaf is being merged; nothing where the console is not a terminal."""

    def __init__(self, console: Console, method: Method, first: Checkpoint) -> None:
        self._progress = Progress(
            TextColumn(method.paper.name),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("leaves  {task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=len(first.leaves), note="")

    def __enter__(self) -> "LiveMerge":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def reads(self, leaf: Leaf) -> None:
        """A leaf is read in the first pass."""
        self._progress.update(self._task, note=f"measuring {printable(leaf.name)}")

    def starts(self, leaf: Leaf) -> None:
        """A leaf is about to be merged."""
        self._progress.update(self._task, note=f"{printable(leaf.name)} ({readable(leaf.nbytes)})")

    def finishes(self) -> None:
        """It is written."""
        self._progress.advance(self._task)


def readable(size: int) -> str:
    """Bytes in the largest unit below them."""
    value, units = float(size), ["bytes", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"
