"""What merging functions share: checkpoints matched leaf by leaf, lifted, merged and stored back.

A merging function is a rule for ONE leaf. A bare array is a tree of one leaf, so checkpoints that do not fit into
memory are merged leaf by leaf by calling the function on `{path: leaf}`; the result is the same to the bit. What
needs numbers of the whole tree computes them in a first pass, from `statistics` of each leaf.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from optax_zoo._core.hyper import Scalar, check_range
from optax_zoo._core.leafwise import promotion
from optax_zoo._core.naming import speaker
from optax_zoo._core.slots import widest
from optax_zoo._core.trees import Leaves, PyTree
from optax_zoo._core.views import Choice, choose


class Group(NamedTuple):
    """Trees that play the same part in a merge, and what they are called in errors."""

    names: tuple[str, ...]
    trees: tuple[PyTree, ...]
    form: Literal["list", "stacked", "single"] = "list"
    same_dtype: bool = True


def several(what: str, given: PyTree, same_dtype: bool = True) -> Group:
    """The trees of a list or tuple, or those stacked on axis 0 of one tree.

    Args:
      what: what one of them is called.
      given: a list or tuple of trees; anything else is one stacked tree.
      same_dtype: whether dtypes must be the first group's too.

    Raises:
      ValueError: there is none, or the leaves of a stacked tree disagree on how many there are.
    """
    if type(given) in (list, tuple):
        trees, form, count = tuple(given), "list", len(given)
    else:
        trees, form, count = (given,), "stacked", _stacked_count(what, given)
    if not count:
        raise ValueError(f"{speaker()}: needs at least one {what}")
    return Group(tuple(f"{what} {i}" for i in range(count)), trees, form, same_dtype)


def single(what: str, tree: PyTree, same_dtype: bool = True) -> Group:
    """One tree beside the models."""
    return Group((what,), (tree,), "single", same_dtype)


def unstacked(group: Group) -> list[PyTree]:
    """The trees of `group`, one by one."""
    if group.form != "stacked":
        return list(group.trees)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], group.trees[0]) for i in range(len(group.names))]


def _stacked_count(what: str, tree: PyTree) -> int:
    first: tuple[str, int] | None = None
    leaves = Leaves(speaker(), what, tree)
    for path, leaf in zip(leaves.paths, leaves.values, strict=True):
        spec = _spec(f"the stacked {what}", path, leaf)
        if spec is None:
            continue
        if not spec.shape:
            raise ValueError(f"{speaker()}: the stacked {what}s need a first axis that counts them; {path} is 0-d")
        count = spec.shape[0]
        first = first or (path, count)
        if count != first[1]:
            raise ValueError(
                f"{speaker()}: the stacked {what}s disagree on their number: {first[1]} at {first[0]}"
                f" and {count} at {path}"
            )
    return first[1] if first else 0


class Matched:
    """Groups of trees, leaf by leaf.

    Raises:
      ValueError: a tree differs from the first in structure, shape or dtype; the sentence names the first leaf.
    """

    def __init__(self, *groups: Group) -> None:
        self.groups = groups
        models = groups[0]
        self.leaves = Leaves(speaker(), models.names[0], models.trees[0])
        named = zip(self.leaves.paths, self.leaves.values, strict=True)
        self.specs = [_spec(models.names[0], path, leaf, models.form) for path, leaf in named]
        self._columns = [self._column(group) for group in groups]

    def _column(self, group: Group) -> list[Any]:
        """For each leaf what the group holds there: the arrays in order, or one array in which they are stacked."""
        matched = []
        for name, tree in zip(group.names[: len(group.trees)], group.trees, strict=True):
            matched.append(self.leaves.match(name, tree))
            for path, mine, other in zip(self.leaves.paths, self.specs, matched[-1], strict=True):
                self._same(path, mine, other, name, group)
        return matched[0] if group.form == "stacked" else list(zip(*matched, strict=True))

    def _same(self, path: str, mine: Any, leaf: Any, name: str, group: Group) -> None:
        first = self.leaves.what
        if leaf is not None and not jax.tree_util.all_leaves([leaf]):
            raise ValueError(f"{speaker()}: at {path} {first} has a leaf and {name} has a {type(leaf).__name__}")
        other = _spec(name, path, leaf, group.form)
        if (mine is None) != (other is None):
            parts = ("None", "an array") if mine is None else ("an array", "None")
            raise ValueError(f"{speaker()}: at {path} {first} has {parts[0]} and {name} has {parts[1]}")
        if mine is None:
            return
        words = ("shape", "dtype") if group.same_dtype else ("shape",)
        for word in words:
            a, b = getattr(mine, word), getattr(other, word)
            if a != b:
                raise ValueError(f"{speaker()}: at {path} {first} has {word} {a} and {name} has {word} {b}")

    def rows(self) -> Iterator[tuple[int, list[Any]]]:
        """Number of each floating leaf and what each group holds there: a list of arrays, or of `single` one array."""
        for i, spec in enumerate(self.specs):
            if spec is not None and jnp.issubdtype(spec.dtype, jnp.inexact):
                held = [column[i] for column in self._columns]
                yield i, [x[0] if g.form == "single" else list(x) for g, x in zip(self.groups, held, strict=True)]

    def each(self, what: str, choice: Choice) -> list[Any]:
        """The value that `choice` gives to each leaf."""
        tree = self.leaves.unflatten(self.specs)
        chosen = iter(choose(speaker(), what, choice, tree))
        return [None if spec is None else next(chosen) for spec in self.specs]

    def merge(self, rule: Callable[..., Array], each: dict[str, list[Any]] | None = None, **scalars: Any) -> PyTree:
        """The tree of `rule(*row, **scalars)`; leaves that are no floats are the first model's.

        Args:
          rule: made by `one_leaf`.
          each: further keyword arguments of the rule, one value a leaf.
          **scalars: numbers, or lists of one for each model.

        Raises:
          ValueError: a NaN in concrete weights; the sentence names the model and the leaf.
        """
        models = self.groups[0]
        out = [x if x is None or models.form == "list" else x[0] for x in self.leaves.values]
        for i, row in self.rows():
            self._refuse_nan(i, row)
            out[i] = rule(*row, **{key: values[i] for key, values in (each or {}).items()}, **scalars)
        return self.leaves.unflatten(out)

    def refuse_nans(self) -> None:
        """What `merge` raises, for all leaves."""
        for i, row in self.rows():
            self._refuse_nan(i, row)

    def _refuse_nan(self, i: int, row: list[Any]) -> None:
        for group, held in zip(self.groups, row, strict=True):
            for name, x in zip(group.names, [held] if group.form == "single" else held, strict=True):
                found = _has_nan(x)
                if not isinstance(found, Tracer) and found:
                    raise ValueError(f"{speaker()}: {name} has NaN at {self.leaves.paths[i]}")


def _spec(name: str, path: str, leaf: Any, form: str = "list") -> jax.ShapeDtypeStruct | None:
    """Shape and dtype of one model's part of a leaf, or None of None."""
    if leaf is None:
        return None
    if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
        raise TypeError(f"{speaker()}: {name} has a {type(leaf).__name__} at {path}, no array; put None in its place")
    shape = jnp.shape(leaf)
    return jax.ShapeDtypeStruct(shape[1:] if form == "stacked" else shape, jnp.result_type(leaf))


@jax.jit
def _has_nan(x: Array) -> Array:
    return jnp.isnan(x).any()


def one_leaf(*static: str) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Makes a rule for one leaf: traced once per shape, in float32 or better, its result in the first model's dtype.

    Args:
      *static: keyword arguments of the rule that are no numbers.
    """

    def decorate(rule: Callable[..., Array]) -> Callable[..., Array]:
        def run(ws: list[Array], *beside: Any, **keywords: Any) -> Array:
            wide = lifted(*jax.tree.leaves((ws, beside)))
            real = jnp.finfo(wide).dtype

            def lift(x: Array) -> Array:
                return x.astype(wide if jnp.iscomplexobj(x) else real)

            kept = {key: value for key, value in keywords.items() if key in static}
            scalars = {key: value for key, value in keywords.items() if key not in static}
            scalars = jax.tree.map(lambda x: jnp.asarray(x, real), scalars)
            with promotion(wide):
                merged = rule(*jax.tree.map(lift, (ws, *beside)), **scalars, **kept)
            return merged.astype(ws[0].dtype)

        return jax.jit(functools.wraps(rule)(run), static_argnames=static)

    return decorate


def lifted(*xs: Array) -> jnp.dtype:
    """float32 or better, wide enough for all of `xs`; 8-bit floats take part in no promotion."""
    return widest(jnp.float32, *(x.dtype for x in xs if x.dtype.itemsize > 1))


def added(xs: Sequence[Any]) -> Any:
    """Their sum, from the first to the last."""
    return functools.reduce(operator.add, xs)


def mean(xs: Sequence[Array], weights: Sequence[Array]) -> Array:
    """sum_i weights_i xs_i / sum_i weights_i."""
    return added([c * x for c, x in zip(weights, xs, strict=True)]) / added(weights)


def per_model(name: str, given: Any, count: int, interval: str) -> list[Scalar]:
    """One number a model: those of a sequence or 1-d array, or 1 for each when `given` is None.

    Raises:
      ValueError: there are not `count` of them, or one lies outside of `interval`.
    """
    if given is None:
        return [1.0] * count
    values = list(given) if isinstance(given, Sequence) or np.ndim(given) == 1 else []
    if len(values) != count:
        raise ValueError(f"{speaker()}: {name} must be {count} numbers, one for each model, got {given!r}")
    for value in values:
        check_range(name, value, interval)
    return values


def not_all_zero(name: str, values: list[Scalar]) -> None:
    """Raises a ValueError when all of these concrete weights are 0."""
    if not any(isinstance(x, Tracer) or x != 0 for x in values):
        raise ValueError(f"{speaker()}: {name} must not all be 0")
