"""Dataclasses of numbers, words and arrays as strict JSON, and back with every type checked.

A number that is not finite is `null` in JSON and NaN when read back.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

import numpy as np

LEAVES = {"f": {float, int, type(None)}, "i": {int}, "b": {bool}}
SCALARS: dict[Any, set[type]] = {float: LEAVES["f"], int: LEAVES["i"], str: {str}}


def to_json(value: Any) -> Any:
    """What `json.dumps(..., allow_nan=False)` takes: arrays and tuples as lists, dataclasses as objects."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def from_json(kind: Any, value: Any, where: str = "") -> Any:
    """The `kind` that `to_json` turned into `value`.

    Args:
      kind: a dataclass, `float`, `int`, `str`, `tuple[x, ...]`, `Mapping[str, x]`, `np.ndarray[shape, np.dtype[x]]`,
        or one or None.
      value: of JSON.
      where: how errors call it.

    Raises:
      ValueError: a field is missing or unknown, or a value has another type; one sentence that says which.
      OverflowError: a number is too large for its type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else from_json(inner[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _fields(kind, _of(dict, value, where), where)
    if origin is tuple:
        items = enumerate(_of(list, value, where))
        return tuple(from_json(inner[0], item, f"{where}[{i}]") for i, item in items)
    if origin is Mapping:
        return {key: from_json(inner[1], item, _join(where, key)) for key, item in _of(dict, value, where).items()}
    if origin is np.ndarray:
        return _array(np.dtype(get_args(inner[1])[0]), _of(list, value, where), where)
    if type(value) not in SCALARS[kind]:
        raise ValueError(f"{where} is {value!r}, not {kind.__name__}")
    return float("nan") if value is None else kind(value)


def _fields(kind: Any, record: dict[str, Any], where: str) -> Any:
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if wrong := sorted(fields.keys() ^ record.keys()):
        raise ValueError(f"{_join(where, wrong[0])} is {'missing' if wrong[0] in fields else 'unknown'}")
    return kind(**{name: from_json(of, record[name], _join(where, name)) for name, of in fields.items()})


def _array(dtype: np.dtype, value: list[Any], where: str) -> np.ndarray:
    leaves = np.array(value, dtype=object)
    if not set(map(type, leaves.flat)) <= LEAVES[dtype.kind]:
        raise ValueError(f"{where} is not a regular array of {dtype.name}")
    return leaves.astype(dtype)


def _of(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{where} is {value!r:.40}, not {'an object' if kind is dict else 'a list'}")
    return value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
