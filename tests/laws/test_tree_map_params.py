"""`optax.tree_map_params` touches the params-shaped leaves of the state, each with its own parameter, and no other."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo import Paper
from tests.laws.harness import build, law, make_params, rate


@dataclasses.dataclass
class Pair:
    """A state leaf that was met together with a parameter; no pytree."""

    leaf: Array
    param: Array


def is_masked(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


def meet(leaf: Any, param: Array) -> Any:
    return leaf if is_masked(leaf) else Pair(leaf, param)


@law
def test_tree_map_params(paper: Paper) -> None:
    tx = build(paper, rate(paper))
    params = make_params()
    state = jax.eval_shape(tx.init, params)
    mapped = optax.tree_map_params(tx, meet, state, params, is_leaf=is_masked)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves_with_path(mapped), jax.tree.leaves(state), strict=True)
    for (path, result), leaf in pairs:
        where = jax.tree_util.keystr(path)
        if isinstance(result, Pair):
            assert jnp.shape(result.leaf) == jnp.shape(result.param), f"{where} is not shaped like its parameter"
        else:
            assert leaf.shape != params["w"].shape, f"{where} has a parameter's shape and was not touched"
