"""Trees that travel together: gradients, parameters and state slots, matched leaf by leaf."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr

PyTree = Any


def is_none(x: object) -> bool:
    return x is None


def broadcast(prefix: PyTree, tree: PyTree) -> PyTree:
    """Repeats each leaf of `prefix` over the subtree of `tree` that it stands for."""
    return jax.tree.map(lambda leaf, sub: jax.tree.map(lambda _: leaf, sub), prefix, tree)


def is_function(value: object) -> bool:
    """Whether `value` is to be called, and is not a tree whose container happens to be callable, such as a module."""
    return callable(value) and jax.tree_util.all_leaves([value])


def stands_for_params(tree: PyTree) -> bool:
    """Whether `tree` is one node without leaves of a class of its own, as `optax.tree_map_params` puts in the place of
    all parameters to see where the state repeats them."""
    root = jax.tree.structure(tree)
    data = root.node_data()
    return root.num_nodes == 1 and root.num_leaves == 0 and data is not None and data[0] not in _CONTAINERS


_CONTAINERS = (dict, list, tuple, collections.OrderedDict, collections.defaultdict, type(None), optax.MaskedNode)


class Leaves:
    """The leaves of one tree, and of any tree of the same structure in the same order.

    `None` counts as a leaf (a parameter without gradient); `optax.MaskedNode` holds no leaf.
    """

    def __init__(self, speaker: str, what: str, tree: PyTree) -> None:
        self.speaker, self.what, self.tree = speaker, what, tree
        pairs, self.treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
        self.paths = [keystr(path) or "the root" for path, _ in pairs]
        self.values = [leaf for _, leaf in pairs]

    def match(self, what: str, tree: PyTree) -> list[Any]:
        """The subtrees of `tree` at these leaves, or one sentence with the first path that differs."""
        try:
            return self.treedef.flatten_up_to(tree)
        except ValueError:
            raise ValueError(self._difference(what, tree)) from None

    def same_shapes(self, what: str, values: list[Any]) -> None:
        for path, mine, other in zip(self.paths, self.values, values, strict=True):
            if mine is not None and other is None:
                raise ValueError(f"{self.speaker}: at {path} {self.what} has an array and {what} has None")
            if mine is not None and jnp.shape(mine) != jnp.shape(other):
                raise ValueError(
                    f"{self.speaker}: at {path} {self.what} has shape {jnp.shape(mine)}"
                    f" and {what} has shape {jnp.shape(other)}"
                )

    def only_inexact(self, real_only: bool = False) -> None:
        """Refuses integer and boolean leaves by path, and with `real_only` complex ones."""
        for path, leaf in zip(self.paths, self.values, strict=True):
            if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise TypeError(
                    f"{self.speaker}: {self.what} at {path} is {jnp.result_type(leaf)}; only floating or complex"
                    " leaves can be optimized (mask it, or pass None in its place)"
                )
            if leaf is not None and real_only and jnp.iscomplexobj(leaf):
                raise TypeError(
                    f"{self.speaker}: {self.what} at {path} is complex; the method orders or multiplies real numbers"
                    " (mask the leaf, or split it into its real and imaginary part)"
                )

    def unflatten(self, values: list[Any]) -> PyTree:
        return jax.tree.unflatten(self.treedef, values)

    def _difference(self, what: str, tree: PyTree) -> str:
        theirs = [keystr(p) or "the root" for p, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)[0]]
        extra = [path for path in self.paths if path not in theirs]
        missing = [path for path in theirs if path not in self.paths]
        if extra:
            detail = f"{self.what} has a leaf at {extra[0]}, {what} has none there"
        elif missing:
            detail = f"{what} has a leaf at {missing[0]}, {self.what} has none there"
        else:
            detail = f"their containers differ: {self.treedef} and {jax.tree.structure(tree)}"
        return f"{self.speaker}: {self.what} and {what} must have the same tree structure; {detail}"


def per_leaf(leaves: Leaves, what: str, value: PyTree | Callable[[PyTree], PyTree]) -> list[Any]:
    """One static value a leaf, from a constant, a (prefix) tree or a function of the tree."""
    prefix = value(leaves.tree) if is_function(value) else value
    try:
        return leaves.treedef.flatten_up_to(broadcast(prefix, leaves.tree))
    except ValueError:
        raise ValueError(
            f"{leaves.speaker}: {what} must be a tree (or a prefix) of {leaves.what}, {leaves.treedef};"
            f" got {jax.tree.structure(prefix)}"
        ) from None
