"""What an optimizer keeps per parameter, and what it needs."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import optax

from optax_zoo._core.notes import taking_notes
from optax_zoo._core.paper import in_use
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import KeyPath, path_name


def describe(tx: optax.GradientTransformation, params: PyTree) -> str:
    """A table of the optimizer's state slots with dtypes and bytes per parameter, and of the methods in use.

    Args:
      tx: any gradient transformation.
      params: the parameters, or their `jax.ShapeDtypeStruct`s; nothing is computed.

    Returns:
      Text: one line per slot (field, dtypes, entries, bytes per parameter), a total, what each method needs and which
      laws it cannot obey; of methods that look at matrices, how each leaf is read.
    """
    with taking_notes() as notes:
        state = jax.eval_shape(tx.init, params)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    order = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    known = set(order)
    slots: dict[str, list[Any]] = defaultdict(list)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        slots[_slot(path, known)].append(leaf)

    def row(name: str, leaves: list[Any]) -> tuple[str, ...]:
        dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        entries = sum(math.prod(leaf.shape) for leaf in leaves)
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        return name, dtypes, f"{entries:,}", f"{size / max(parameters, 1):.3g}"

    every = [leaf for leaves in slots.values() for leaf in leaves]
    table = [("slot", "dtype", "entries", "bytes/parameter"), *(row(n, v) for n, v in slots.items())]
    table.append(("total", "", *row("total", every)[2:]))
    lines = _aligned(table)
    for group in in_use(state):
        names, entry = " or ".join(entry.name for entry in group), group[0]
        lines.append(f"{names}: {entry.title} ({entry.year}), {entry.link}")
        if entry.needs:
            lines.append(f"{names} needs {', '.join(entry.needs)}")
        lines += [f"{names} breaks the law {law!r}: {why}" for law, why in entry.breaks.items()]
    for method in dict.fromkeys(note.method for note in notes.values()):
        decided = [notes[method, path] for path in map(path_name, order) if (method, path) in notes]
        rows = [(f"leaf, to {method}", "shape", "is"), *((n.path, str(n.shape), n.decision) for n in decided)]
        lines += ["", *_aligned(rows)]
    return "\n".join(lines)


def _slot(path: KeyPath, params: set[KeyPath]) -> str:
    """The field of the state that holds the leaf: the last one before the path that a parameter has itself."""
    end = next((i for i in range(len(path)) if path[i:] in params), len(path))
    fields = [key.name for key in path[:end] if isinstance(key, jax.tree_util.GetAttrKey)]
    return fields[-1] if fields else "state"


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
