"""How a leaf is read as matrices: which axes are reduced over, which are outputs, which merely repeat.

One language for every matrix method: a `MatrixView` for all leaves, a tree of them, a function of a leaf's path, or
rules over paths (`matrix_rules`); the word "fallback" in the place of a view leaves a leaf to the fallback optimizer.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.tree_util import keystr

from optax_zoo._core.naming import speaking_as, suggestion
from optax_zoo._core.trees import PyTree, is_function

Axes: TypeAlias = int | Sequence[int]
KeyPath: TypeAlias = tuple[Any, ...]
Choice: TypeAlias = Any
"""A constant, a (prefix) tree, `f(path, leaf)` with a path such as "block/kernel", or `f(tree)` -> tree."""


FALLBACK = "fallback"
"""In the place of a view: the leaf is left to the fallback optimizer, AdamW in the finished methods."""


class MatrixView(NamedTuple):
    """A leaf read as matrices of shape (fan_in, fan_out); several axes of one kind are flattened together.

    `split=(d, d, d)` or `split=3` cuts a fused projection (query, key and value in one kernel, say) into blocks that
    are separate matrices, each scaled by its own shape; `heads=h` cuts the outputs of each block, evenly, once more.
    """

    reduction: Axes | None = 0  # input axes; None: all that are not named otherwise
    output: Axes = 1  # output axes
    batch: Axes = ()  # layers, heads, experts
    split: int | Sequence[int] = ()  # blocks along the flattened output axes: their sizes, or how many equal ones
    heads: int = 1  # equal parts of each block


KERNEL = MatrixView(None, -1)
"""All axes but the last are reduced over: kernels in Flax's layout, (in, out) or (height, width, in, out)."""


DimensionNumbers: TypeAlias = Any
"""None, `matrix_rules(...)` or a `Choice` of `MatrixView`s; objects with `reduction_axis` and `output_axis`, such as
`optax.contrib.MuonDimensionNumbers`, count as views whose other axes are batch axes. "fallback" for a leaf: it is no
matrix. None for a leaf: `KERNEL`, but beside optax's views what it means there, "fallback"."""


def is_view(x: object) -> bool:
    """Whether `x` says how a leaf is read as matrices."""
    return isinstance(x, MatrixView) or (hasattr(x, "reduction_axis") and hasattr(x, "output_axis"))


def as_matrix_view(view: Any, ndim: int) -> MatrixView:
    """A view of a leaf of so many axes; None is `KERNEL`."""
    if view is None or isinstance(view, MatrixView):
        return KERNEL if view is None else view
    reduction, output = as_axes(view.reduction_axis), as_axes(view.output_axis)
    named = {axis % ndim for axis in reduction + output}
    return MatrixView(reduction, output, [axis for axis in range(ndim) if axis not in named])


def as_axes(axes: Axes) -> tuple[int, ...]:
    """One axis or several as a tuple of Python integers."""
    return tuple(map(operator.index, axes)) if isinstance(axes, Sequence) else (operator.index(axes),)


def is_fallback(x: object) -> bool:
    """Whether `x` leaves a leaf to the fallback optimizer."""
    return isinstance(x, str) and x == FALLBACK


def path_name(path: KeyPath) -> str:
    """The leaf at ["block"]["kernel"] is called "block/kernel"."""
    return keystr(path, simple=True, separator="/")


def choose(
    speaker: str,
    what: str,
    value: Choice,
    tree: PyTree,
    is_leaf: Callable[[Any], bool] | None = None,
    seen: Callable[[Any], Any] = lambda leaf: leaf,
) -> list[Any]:
    """The value that `value` gives to each leaf of `tree` (`None` and `MaskedNode` hold no leaf).

    Args:
      speaker: the method.
      what: the argument that `value` is.
      value: a `Choice`.
      tree: of leaves.
      is_leaf: which containers are values.
      seen: what a function of two arguments is told of a leaf beside its path.

    Raises:
      ValueError: a tree without an entry for some leaf of `tree`.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    if is_function(value):
        if _required_arguments(value) == 2:
            with speaking_as(speaker):
                return [value(path_name(path), seen(leaf)) for path, leaf in flat]
        value = value(tree)

    def stop(node: Any) -> bool:
        return node is None or (is_leaf is not None and is_leaf(node))

    entries = dict(jax.tree_util.tree_flatten_with_path(value, is_leaf=stop)[0])

    def entry(path: KeyPath) -> Any:
        for length in range(len(path), -1, -1):
            if path[:length] in entries:
                return entries[path[:length]]
        raise ValueError(f"{speaker}: {what} has no entry for the leaf at {keystr(path)}")

    return [entry(path) for path, _ in flat]


def choose_views(speaker: str, dimension_numbers: DimensionNumbers, tree: PyTree) -> list[Any]:
    """The view of each leaf of `tree`, None or "fallback".

    Raises:
      TypeError: an entry that is none of these; the sentence names the leaf.
      ValueError: a tree without an entry, or rules of which none fits.
    """
    by_rules = getattr(dimension_numbers, "view_of", None)
    chosen = choose(speaker, "dimension_numbers", by_rules or dimension_numbers, tree, is_view)
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    for (path, _), view in zip(flat, chosen, strict=True):
        if not (view is None or is_view(view) or is_fallback(view)):
            hint = suggestion(view, [FALLBACK]) if isinstance(view, str) else ""
            raise TypeError(
                f"{speaker}: dimension_numbers must be a MatrixView, None or {FALLBACK!r} for the leaf at"
                f" {keystr(path) or 'the root'}, got {view!r}{hint}"
            )
    optax_s = any(is_view(view) and not isinstance(view, MatrixView) for view in chosen)
    return [FALLBACK if view is None and optax_s else view for view in chosen]


def map_views(
    speaker: str, dimension_numbers: DimensionNumbers, tree: PyTree, read: Callable[[str, str, Any, Any], Any]
) -> PyTree:
    """A tree like `tree` of what `read` makes of each leaf.

    Args:
      speaker, dimension_numbers, tree: as in `choose_views`, as are the errors.
      read: from the beginning of an error about the leaf, its path, the leaf and its view.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    views = choose_views(speaker, dimension_numbers, tree)
    return jax.tree.unflatten(
        treedef,
        [
            read(f"{speaker}: the leaf at {keystr(path) or 'the root'}", path_name(path), leaf, view)
            for (path, leaf), view in zip(flat, views, strict=True)
        ],
    )


def _required_arguments(function: Callable[..., Any]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.default is p.empty and p.kind in positional for p in parameters)
