"""Roles of leaves: in every form, by Flax's names, and where they do not fit."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from optax_zoo import MatrixView
from optax_zoo.matrix.scion import _role_by_path
from tests.papers.matrix.test_dualize import assert_equal, dualized, gaussian, in_numpy


@pytest.mark.parametrize(
    "roles",
    [
        {"a": {"w": "sign", "e": "embed"}, "b": "vector"},
        lambda path, shape: "embed" if path == "a/e" else "sign" if len(shape) == 2 else "vector",
        lambda tree: {"a": {name: "embed" if name == "e" else "sign" for name in tree["a"]}, "b": "vector"},
        zoo.dual_roles({"*/e": "embed", "*/w": "sign"}),
    ],
)
def test_roles_in_every_form(roles: Any) -> None:
    g = {"a": {"w": gaussian(4, 6), "e": gaussian(7, 5)}, "b": gaussian(5)}
    ours = dualized(g, roles)
    assert_equal(ours["a"], {"w": jnp.sign(g["a"]["w"]), "e": in_numpy(np.asarray(g["a"]["e"]), "embed", 0.0)})
    assert_equal(ours["b"], in_numpy(np.asarray(g["b"]), "vector", 0.0))


@pytest.mark.parametrize(
    ("path", "shape", "role", "scion"),
    [
        ("block/Dense_0/kernel", (3, 4), "linear", "linear"),
        ("block/Dense_0/kernel/value", (3, 4), "linear", "linear"),
        ("lm_head/kernel", (3, 9), "linear", "sign"),
        ("lm_head/kernel/value", (3, 9), "linear", "sign"),
        ("unembed/kernel", (3, 9), "linear", "sign"),
        ("tokens/embedding", (9, 3), "embed", "embed"),
        ("attention/query/kernel", (8, 2, 4), MatrixView(0, (1, 2)), MatrixView(0, (1, 2))),
        ("attention/out/kernel", (2, 4, 8), MatrixView((0, 1), 2), MatrixView((0, 1), 2)),
        ("attention/query/bias", (2, 4), "vector", "vector"),
        ("layers/norm/scale", (12, 8), "vector", "vector"),
        ("Conv_0/kernel", (3, 4, 8), "conv", "conv"),
        ("Conv_0/kernel", (3, 3, 4, 8), "conv", "conv"),
        ("general/kernel", (3, 4, 8), None, None),
    ],
)
def test_roles_by_name(path: str, shape: tuple[int, ...], role: Any, scion: Any) -> None:
    assert zoo.dual_roles()(path, shape) == role
    assert _role_by_path(path, shape) == scion


def test_the_preset_reads_attention() -> None:
    x = jnp.ones((1, 3, 8))
    params = nn.MultiHeadDotProductAttention(2).init(jax.random.key(0), x, x)
    for tx in (zoo.dualize("flax"), zoo.scion(0.1)):
        updates, _ = tx.update(params, tx.init(params), params)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


class Network(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array, image: jax.Array) -> Any:
        x = nn.LayerNorm()(nn.Embed(7, 4)(tokens))
        return nn.Dense(3)(x), nn.Conv(5, (3, 3))(image)


def test_the_preset_knows_a_flax_model() -> None:
    shapes = jax.eval_shape(Network().init, jax.random.key(0), jnp.zeros((2,), jnp.int32), jnp.zeros((1, 8, 8, 2)))
    flat = jax.tree_util.tree_flatten_with_path(shapes["params"])[0]
    found = {path[0].key + "/" + path[1].key: zoo.dual_roles()(path[-1].key, leaf.shape) for path, leaf in flat}
    assert found == {
        "Conv_0/bias": "vector",
        "Conv_0/kernel": "conv",
        "Dense_0/bias": "vector",
        "Dense_0/kernel": "linear",
        "Embed_0/embedding": "embed",
        "LayerNorm_0/bias": "vector",
        "LayerNorm_0/scale": "vector",
    }
    ruled = zoo.dual_roles({"dense_0/*": "sign", "*/kernel": "linear"}, embeddings=["Vocabulary"])
    assert ruled("Dense_0/kernel", (2, 2)) == "sign"
    assert ruled("conv/kernel", (1, 1, 2, 2)) == "linear"
    assert ruled("vocabulary/table", (3, 2)) == "embed"
    assert ruled("embedding", (3, 2)) == "linear"


@pytest.mark.parametrize(
    ("leaf", "roles", "sentence"),
    [
        (gaussian(3), "linear", r"shape \(3,\) has the role 'linear', which is for leaves of shape \(in, out\)"),
        (gaussian(3, 3, 2, 2), "linear", r"has the role 'linear', which is for leaves of shape \(in, out\)"),
        (gaussian(3), "embed", r"has the role 'embed', which is for leaves of shape \(vocabulary, d\)"),
        (gaussian(3, 2), "conv", r"has the role 'conv', which is for leaves of shape \(height, width, in, out\)"),
        (gaussian(3, 2), "liner", r"must have one of the roles 'linear', .*, got 'liner'; did you mean 'linear'\?"),
        (gaussian(3, 2), {"w": 3}, r"must have one of the roles .*, got 3"),
        (gaussian(3, 2, 2), "flax", r"of shape \(3, 2, 2\) has no role; give it one of 'linear'"),
        (gaussian(3, 2), lambda path, leaf: None, r"has no role"),
        (gaussian(3, 2), MatrixView(0, 2), r"of shape \(3, 2\) has axes -2 to 1"),
    ],
)
def test_roles_that_do_not_fit_are_named(leaf: Any, roles: Any, sentence: str) -> None:
    tx = zoo.dualize(roles)
    for call in (tx.init, lambda g: tx.update(g, zoo.dualize("sign").init(g))):
        with pytest.raises(ValueError, match=r"^dualize: the leaf at \['w'\] " + ".*" + sentence):
            call({"w": leaf})


def test_trees_without_an_entry_are_named() -> None:
    g = {"w": gaussian(3, 2)}
    with pytest.raises(ValueError, match=r"dualize: roles has no entry for the leaf at \['w'\]"):
        dualized(g, {"v": "sign"})
    for target in ({"v": 1.0}, {"w": None}):
        with pytest.raises(ValueError, match=r"dualize: target_norm has no entry for the leaf at \['w'\]"):
            dualized(g, "sign", target_norm=target)
