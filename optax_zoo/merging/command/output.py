"""A checkpoint that appears under its name whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optax_zoo.merging.command.checkpoints import is_checkpoint
from optax_zoo.merging.command.errors import MergeError


def refuse_existing(target: Path, force: bool) -> None:
    """Raises MergeError unless `target` is free, or `force` and a checkpoint, which may be replaced."""
    if not os.path.lexists(target):
        return
    if not force:
        raise MergeError(f"{target} exists; choose another --out, or --force to replace it")
    if not is_checkpoint(target):
        raise MergeError(f"{target} exists and is no checkpoint, which --force would replace; choose another --out")


@contextlib.contextmanager
def replacing(target: Path, force: bool) -> Iterator[Path]:
    """A path beside `target` to write to, which takes its place if nothing goes wrong.

    Raises:
      MergeError: it cannot be written, or `target` is taken.
    """
    refuse_existing(target, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            new = beside / target.name
            yield new
            _synchronize(new)
            refuse_existing(target, force)
            _move(new, target, aside=beside / "replaced")
            _synchronize(target.parent, below=False)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise MergeError(f"cannot write {target}: {error.strerror}; nothing was left there") from error


def _move(new: Path, target: Path, aside: Path) -> None:
    """Renames `new` to `target`; what was there is put back if that fails."""
    if new.is_file() and not target.is_dir():
        os.replace(new, target)
        return
    if os.path.lexists(target):
        os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        if os.path.lexists(aside):
            os.rename(aside, target)
        raise


def _synchronize(path: Path, below: bool = True) -> None:
    """Puts a file, or a folder and what is below it, on the disk."""
    if below and path.is_dir():
        for inner in path.iterdir():
            _synchronize(inner)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
