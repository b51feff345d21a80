"""Safetensors files, read and written tensor by tensor.

The format: 8 bytes with the header's length, a JSON header with dtype, shape and place of each tensor, the tensors.
Its own library maps whole files into memory to read and wants all tensors at once to write, and its NumPy side knows
no 8-bit floats; what a merge needs is so little that it stands here.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from optax_zoo.merging.command.checkpoints import SUFFIX, Leaf, Place, empty, leaf_name, named
from optax_zoo.merging.command.errors import MergeError

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "C64": np.dtype("<c8"),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (8, 4, 2, 1)},
    "BOOL": np.dtype(np.bool_),
}
_LONGEST_HEADER = 100_000_000  # bytes, the library's own limit
_INDEX = ".index.json"


class Extent(NamedTuple):
    """Where a tensor's bytes begin."""

    file: Path
    start: int


class SafetensorsFiles:
    """The tensors of one file, or of the files among which a model is divided."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self._extents: dict[str, Extent] = {}
        self._remarks: dict[str, str] = {}
        leaves: list[Leaf] = []
        for file in files:
            header, begin = read_header(file)
            self._remarks |= header.pop("__metadata__", {})
            for spelling, entry in header.items():
                leaf = Leaf(leaf_name(spelling), spelling, tuple(entry["shape"]), DTYPES[entry["dtype"]])
                self._extents[leaf.name] = Extent(file, begin + entry["data_offsets"][0])
                leaves.append(leaf)
        self.leaves: Mapping[str, Leaf] = named(path, leaves)

    def read(self, leaf: Leaf) -> NDArray[Any]:
        """The array of one of `leaves`."""
        extent = self._extents[leaf.name]
        array = empty(leaf)
        try:
            with extent.file.open("rb") as file:
                file.seek(extent.start)
                done = file.readinto(array.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise MergeError(f"cannot read {extent.file}: {error.strerror}") from error
        if done != leaf.nbytes:
            raise MergeError(f"{extent.file} is half-written: it ends within {leaf.spelling}")
        return array

    def tree(self) -> Any:
        """Nested dicts, as the names of the tensors say."""
        root: dict[str, Any] = {}
        for name in self.leaves:
            *above, last = name.split("/")
            node = root
            for key in above:
                node = node.setdefault(key, {})
                if isinstance(node, Place):
                    raise MergeError(f"{self.path} has leaves at {node.name} and {name}, which no tree can have")
            if last in node:
                raise MergeError(f"{self.path} has leaves at {name} and below it, which no tree can have")
            node[last] = Place(name)
        return root

    def metadata(self) -> dict[str, str]:
        """The file's remarks, such as the framework it is for."""
        return self._remarks


def files_of(path: Path) -> list[Path]:
    """The safetensors files that `path` stands for: itself, or those that lie in the folder; none if it is neither.

    Raises:
      MergeError: the folder's index cannot be read, or the folder holds several models.
    """
    if not path.is_dir():
        return [path] if path.name.endswith(SUFFIX) else []
    indices = sorted(path.glob(f"*{SUFFIX}{_INDEX}"))
    if len(indices) == 1:
        try:
            names = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
            return [path / name for name in sorted(names)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MergeError(f"cannot read the index of tensors {indices[0]}") from error
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise MergeError(f"{path} holds {len(files)} safetensors files; name one of them, such as {files[0]}")
    return files


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the position at which the tensors begin.

    Raises:
      MergeError: no safetensors file, a part of one, or tensors of an unknown dtype.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or 8 + length > size:
                promised = f", its header alone has {length}" if size >= 8 and length <= _LONGEST_HEADER else ""
                raise MergeError(f"{path} is half-written or no safetensors file: it has {size} bytes{promised}")
            header = json.loads(file.read(length))
        ends = [_check(path, name, entry) for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise MergeError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(f"{path} is no safetensors file: its header is not understood") from error
    end = 8 + length + max(ends, default=0)
    if end > size:
        raise MergeError(f"{path} is half-written: it has {size} bytes of {end}")
    return header, 8 + length


def _check(path: Path, name: str, entry: dict[str, Any]) -> int:
    """Where the tensor ends."""
    start, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise MergeError(f"{path} has dtype {entry['dtype']} at {leaf_name(name)}, which cannot be merged")
    if start < 0 or end - start != math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize:
        raise MergeError(f"{path} is damaged: {end - start} bytes cannot hold the tensor {name}")
    return end


class SafetensorsWriter:
    """A new file, whose places are fixed by its header; tensors are written in any order.

    Args:
      path: a file that does not exist yet.
      leaves: all tensors.
      remarks: the file's metadata.
    """

    def __init__(self, path: Path, leaves: Iterable[Leaf], remarks: Mapping[str, str]) -> None:
        names = {dtype: word for word, dtype in DTYPES.items()}
        header: dict[str, Any] = {"__metadata__": dict(remarks)} if remarks else {}
        self._starts: dict[str, int] = {}
        end = 0
        for leaf in sorted(leaves, key=lambda leaf: -leaf.dtype.itemsize):
            if leaf.dtype not in names:
                raise MergeError(f"a safetensors file cannot hold the {leaf.dtype} at {leaf.name}; choose a folder")
            header[leaf.spelling] = {
                "dtype": names[leaf.dtype],
                "shape": list(leaf.shape),
                "data_offsets": [end, end + leaf.nbytes],
            }
            self._starts[leaf.name] = end
            end += leaf.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self._file: BinaryIO = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, leaf: Leaf, array: NDArray[Any]) -> None:
        """Puts the array of one leaf in its extent."""
        self._file.seek(self._begin + self._starts[leaf.name])
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()
