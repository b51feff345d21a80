"""Orbax checkpoints, read and written leaf by leaf.

Orbax stores each leaf as an array of TensorStore's, called by the keys of the tree joined by dots, and the tree in a
file of JSON. Leaves are read and written with TensorStore, one at a time; the tree of a new checkpoint is laid out by
Orbax itself, with a number in the place of each array.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from numpy.typing import NDArray

from optax_zoo.merging.command.checkpoints import Leaf, Place, empty, leaf_name, named
from optax_zoo.merging.command.errors import MergeError
from optax_zoo.race.errors import printable

_TREE, _TEXTS, _DATABASE = "_METADATA", "_strings.json", "manifest.ocdbt"
_UNFINISHED = ".orbax-checkpoint-tmp"
_SEQUENCE = 1  # the type of a key that belongs to a list
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")
_EMPTY: Mapping[str, Any] = {"None": None, "Dict": {}, "List": [], "Tuple": (), "NamedTuple": {}}
_CHUNK = 2**24  # entries of an array that are compressed at once

_Key = tuple[str, int]  # key and its type


class OrbaxFolder:
    """One tree that Orbax saved: a checkpoint's folder, or the only one in a step of a `CheckpointManager`."""

    def __init__(self, path: Path) -> None:
        _refuse_stray_bytes(path)
        self.path, self._folder = path, _folder_of_tree(path)
        self._stores: dict[str, ts.TensorStore] = {}
        record = _read_json(self._folder / _TREE)
        try:
            how = {
                "driver": "zarr3" if record.get("use_zarr3") else "zarr",
                "fill_missing_data_reads": not record.get("store_array_data_equal_to_fill_value"),
            }
            entries = [
                ([(str(key["key"]), key["key_type"]) for key in entry["key_metadata"]], entry["value_metadata"])
                for entry in record["tree_metadata"].values()
            ]
            found = [(keys, self._value(keys, value["value_type"], how)) for keys, value in entries]
        except (KeyError, TypeError, AttributeError) as error:
            raise MergeError(f"{path} is damaged: its {_TREE} is not understood") from error
        self.leaves: Mapping[str, Leaf] = named(path, [leaf for _, (_, leaf) in found if leaf is not None])
        self._tree = _grown([(keys, value) for keys, (value, _) in found])

    def _value(self, keys: Sequence[_Key], kind: str, how: Mapping[str, Any]) -> tuple[Any, Leaf | None]:
        """What stands in the tree, and the leaf if it is one."""
        spelling = ".".join(key for key, _ in keys)
        name = leaf_name(spelling)
        if kind in _EMPTY:
            return _EMPTY[kind], None
        if kind == "string":
            return str(_read_json(self._folder / _TEXTS)[spelling]), None
        if kind not in _ARRAYS:
            raise MergeError(f"{self.path} has a {kind} at {name}, which cannot be merged")
        try:
            store = ts.open({**how, "kvstore": _kvstore(self._folder, spelling)}, open=True).result()
        except (ValueError, OSError) as error:
            raise MergeError(f"{self.path} is half-written or damaged: no array can be read at {name}") from error
        self._stores[name] = store
        leaf = Leaf(name, spelling, tuple(store.shape), np.dtype(store.dtype.numpy_dtype))
        return Place(name, kind == "scalar"), leaf

    def read(self, leaf: Leaf) -> NDArray[Any]:
        """The array of one of `leaves`."""
        array = empty(leaf)
        try:
            ts.array(array).write(self._stores[leaf.name]).result()
        except (ValueError, OSError) as error:
            raise MergeError(f"{self.path} is half-written or damaged: no array can be read at {leaf.name}") from error
        return array

    def tree(self) -> Any:
        """What Orbax restores without a target, with a `Place` for each leaf."""
        return self._tree

    def metadata(self) -> dict[str, str]:
        """Nothing: the remarks of a folder are Orbax's own."""
        return {}


class OrbaxWriter:
    """A new checkpoint's folder.

    Args:
      path: a folder that does not exist yet.
      leaves: all arrays, by name.
      tree: where they stand.
    """

    def __init__(self, path: Path, leaves: Mapping[str, Leaf], tree: Any) -> None:
        _refuse_stray_bytes(path)
        void = next((leaf.name for leaf in leaves.values() if 0 in leaf.shape), None)
        if void is not None:
            raise MergeError(f"Orbax stores no arrays of no entries, such as the one at {void}")
        self._folder = path
        self._spellings: dict[str, str] = {}

        def number(keys: Sequence[Any], value: Any) -> Any:
            if not isinstance(value, Place):
                return value
            self._spellings[value.name] = ".".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in keys)
            zero = np.zeros((), leaves[value.name].dtype)
            return zero[()] if value.scalar else zero

        skeleton = jax.tree_util.tree_map_with_path(number, tree)
        with _quiet(), _failing_as_the_system(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(skeleton))

    def write(self, leaf: Leaf, array: NDArray[Any]) -> None:
        """Puts the array of one leaf in its place.

        Raises:
          OSError: it cannot be written.
        """
        place = {"driver": "zarr", "kvstore": _kvstore(self._folder, self._spellings[leaf.name])}
        with _failing_as_the_system():
            laid_out = ts.open(place, open=True).result().spec().to_json()["metadata"]
            metadata = {key: laid_out[key] for key in ("dtype", "compressor", "fill_value", "order")}
            new = {
                **place,
                "metadata": {**metadata, "shape": list(leaf.shape)},
                "schema": {"chunk_layout": {"chunk": {"elements_soft_constraint": _CHUNK}}},
                "store_data_equal_to_fill_value": True,
            }
            ts.open(new, create=True, delete_existing=True).result().write(array).result()

    def close(self) -> None:
        """Nothing: each leaf is on the disk when it is written."""


def _refuse_stray_bytes(path: Path) -> None:
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise MergeError(f"Orbax cannot use {printable(path.absolute())}: the name is not UTF-8") from error


def _folder_of_tree(path: Path) -> Path:
    """The folder of the one tree at `path`."""
    if _UNFINISHED in path.absolute().name:
        raise MergeError(f"{path} is half-written: Orbax has not finished it")
    if (path / _TREE).is_file():
        return path
    trees = sorted(found.parent for found in path.glob(f"*/{_TREE}"))
    if len(trees) == 1:
        return trees[0]
    if trees:
        raise MergeError(f"{path} holds {len(trees)} trees; name one of them, such as {trees[0]}")
    steps = sorted((below for below in path.iterdir() if below.name.isdecimal()), key=lambda below: int(below.name))
    if steps:
        raise MergeError(f"{path} holds {len(steps)} steps; name one of them, such as {steps[-1]}")
    raise MergeError(f"{path} is no checkpoint, or a half-written one: it has no {_TREE} of Orbax's")


def _grown(entries: Sequence[tuple[Sequence[_Key], Any]]) -> Any:
    """The tree whose leaves stand under these keys."""
    if len(entries) == 1 and not entries[0][0]:
        return entries[0][1]
    below: dict[_Key, list[tuple[Sequence[_Key], Any]]] = {}
    for keys, value in entries:
        below.setdefault(keys[0], []).append((keys[1:], value))
    if all(kind == _SEQUENCE for _, kind in below):
        return [_grown(below[key]) for key in sorted(below, key=lambda key: int(key[0]))]
    return {key[0]: _grown(inner) for key, inner in below.items()}


def _kvstore(folder: Path, spelling: str) -> dict[str, Any]:
    """Where TensorStore finds an array."""
    inside = Path(spelling)
    if inside.is_absolute() or ".." in inside.parts:
        raise MergeError(f"{folder} is damaged: {spelling} lies outside of it")
    root = {"driver": "file", "path": f"{folder.absolute()}/"}
    if (folder / _DATABASE).exists():
        return {"driver": "ocdbt", "base": root, "path": f"{spelling}/"}
    return {**root, "path": f"{root['path']}{spelling}/"}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MergeError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise MergeError(f"{path.parent} is half-written or damaged: {path.name} is no JSON") from error


@contextlib.contextmanager
def _failing_as_the_system() -> Iterator[None]:
    """Raises OSError for TensorStore's errors, whose long messages hold the number of the system's."""
    try:
        yield
    except ValueError as error:
        number = re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))
        words = os.strerror(int(number[1])) if number else str(error).partition(" [")[0]
        raise OSError(None, words) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's remarks off the terminal."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
