"""States of one kind inside an optimizer state, through any nesting."""

from typing import Any, TypeVar

import jax

from optax_zoo._core.trees import PyTree

Kind = TypeVar("Kind")


def found(opt_state: PyTree, kind: type[Kind]) -> list[Kind]:
    """The nodes of `opt_state` of class `kind`, in order; of nested ones the outermost."""

    def is_one(node: Any) -> bool:
        return isinstance(node, kind)

    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(node)]
