"""Checkpoints as the command sees them: named leaves, read one at a time.

Leaves are matched by name. A leaf at ["block"]["kernel"] of a tree and a tensor called "block.kernel" or
"block/kernel" are the same leaf, "block/kernel", so that files of both formats can be merged.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from optax_zoo.merging.command.errors import MergeError

SUFFIX = ".safetensors"

_ALIGNMENT = 64  # bytes


class Leaf(NamedTuple):
    """An array in a checkpoint."""

    name: str  # keys joined by "/"
    spelling: str  # the checkpoint's own name
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def floating(self) -> bool:
        """Whether its entries are merged; what counts or indexes is taken from one model."""
        return jnp.issubdtype(self.dtype, jnp.inexact)

    @property
    def nbytes(self) -> int:
        """Of its entries."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a leaf stands in a tree."""

    name: str
    scalar: bool = False  # a number, not an array of no axes


class Checkpoint(Protocol):
    """A checkpoint that is open for reading."""

    path: Path
    leaves: Mapping[str, Leaf]

    def read(self, leaf: Leaf) -> NDArray[Any]:
        """The array of one of `leaves`."""
        ...

    def tree(self) -> Any:
        """Dicts and lists with a `Place` for each leaf; what is no array, such as text, stands there itself."""
        ...

    def metadata(self) -> dict[str, str]:
        """Remarks that a safetensors file keeps."""
        ...


def named(path: Path, leaves: Iterable[Leaf]) -> dict[str, Leaf]:
    """The leaves by name, sorted.

    Raises:
      MergeError: there is none, or two share a name.
    """
    found: dict[str, Leaf] = {}
    for leaf in leaves:
        if leaf.name in found:
            raise MergeError(f"{path} has two leaves at {leaf.name}: {found[leaf.name].spelling} and {leaf.spelling}")
        found[leaf.name] = leaf
    if not found:
        raise MergeError(f"{path} holds no arrays")
    return dict(sorted(found.items()))


def empty(leaf: Leaf) -> NDArray[Any]:
    """Room for a leaf, aligned so that JAX need not copy it."""
    room = np.empty(leaf.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)


def leaf_name(spelling: str) -> str:
    """`spelling` with "/" between the keys."""
    return spelling.replace(".", "/")


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens what lies at `path`, and reads the names, shapes and dtypes of its leaves.

    Raises:
      MergeError: there is no checkpoint, or only a part of one.
    """
    from optax_zoo.merging.command import safetensors_files

    if not path.exists():
        raise MergeError(f"cannot read {path}: no such file or folder")
    files = safetensors_files.files_of(path)
    if files:
        return safetensors_files.SafetensorsFiles(path, files)
    if path.is_dir():
        from optax_zoo.merging.command import orbax_folders

        return orbax_folders.OrbaxFolder(path)
    raise MergeError(f"{path} is no checkpoint: neither a file that ends in {SUFFIX} nor a folder of Orbax's")


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is itself a checkpoint such as the command writes, and not a folder that holds others."""
    return path.name.endswith(SUFFIX) if path.is_file() else (path / "_METADATA").is_file()


def read(checkpoint: Checkpoint, leaf: Leaf) -> NDArray[Any]:
    """The array of a leaf.

    Raises:
      MergeError: it cannot be read, or has NaN.
    """
    array = checkpoint.read(leaf)
    if leaf.floating and np.isnan(array).any():
        raise MergeError(f"{checkpoint.path} has NaN at {leaf.name}")
    return array


@dataclasses.dataclass(frozen=True)
class Group:
    """Checkpoints that play the same part in a merge."""

    part: str
    checkpoints: Sequence[Checkpoint]
    same_dtype: bool


def refuse_differences(first: Checkpoint, group: Group) -> None:
    """Raises MergeError, which names the first leaf that differs, unless all checkpoints have the leaves of `first`."""
    for other in group.checkpoints:
        for name, mine in first.leaves.items():
            theirs = other.leaves.get(name)
            if theirs is None:
                raise MergeError(f"{first.path} has a leaf at {name}, {other.path} has none there")
            for word in ("shape", "dtype") if group.same_dtype else ("shape",):
                a, b = getattr(mine, word), getattr(theirs, word)
                if a != b:
                    raise MergeError(f"at {name} {first.path} has {word} {a} and {other.path} has {word} {b}")
        extra = next((name for name in other.leaves if name not in first.leaves), None)
        if extra is not None:
            raise MergeError(f"{other.path} has a leaf at {extra}, {first.path} has none there")
