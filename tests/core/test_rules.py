"""One language for "what is a matrix here"."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optax_zoo as zoo
from optax_zoo._core.layouts import layout
from optax_zoo._core.rules import fits
from optax_zoo._core.views import FALLBACK, KERNEL, MatrixView, is_view


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("kernel", "block/dense/kernel", True),
        ("kernel", "kernel", True),
        ("kernel", "kernel/scale", False),
        ("query/kernel", "block_0/Attention_0/Query/kernel", True),
        ("query/kernel", "query/out/kernel", False),
        ("query/kernel", "kernel", False),
        ("*conv*/kernel", "Conv_3/kernel", True),
        ("kernel", "dense/kernel/value", True),
        ("router/", "moe/router/gate/kernel", True),
        ("router/", "moe/routers/kernel", False),
        ("*", "anything/at/all", True),
        ("block_?/w", "block_1/w", True),
        ("block_?/w", "block_11/w", False),
    ],
)
def test_a_pattern_fits_the_end_of_a_path(pattern: str, path: str, expected: bool) -> None:
    assert fits(path, pattern) == expected


def test_the_first_rule_that_fits_decides() -> None:
    rules = zoo.matrix_rules(("a/kernel", MatrixView(0, 1)), ("kernel", FALLBACK, 2), ("*", None))
    assert rules.view_of("x/a/kernel", jnp.ones((2, 2))) == MatrixView(0, 1)
    assert rules.view_of("x/b/kernel", jnp.ones((2, 2))) == FALLBACK
    assert rules.view_of("x/b/kernel", jnp.ones((2, 2, 2))) == KERNEL


def test_a_leaf_that_no_rule_covers_is_named() -> None:
    tx = zoo.muon(0.1, dimension_numbers=zoo.matrix_rules(("kernel", None)))
    sentence = r"muon: no rule covers the leaf at 'a/table' of shape \(2, 3\); add one, such as \('a/table', MatrixView"
    with pytest.raises(ValueError, match=sentence):
        tx.init({"a": {"table": jnp.ones((2, 3)), "kernel": jnp.ones((2, 3))}})


def test_layers_come_before_the_axes_of_a_view() -> None:
    rules = zoo.matrix_rules(("kernel", KERNEL, 2), ("query/kernel", MatrixView(0, (1, 2))), stacked=["layers/"])
    for path, shape, batch in (("layers/kernel", (5, 2, 3), True), ("head/kernel", (2, 3), False)):
        view = rules.view_of(path, jnp.ones(shape))
        assert view == (MatrixView([1], [2], [0]) if batch else KERNEL)
    assert rules.view_of("layers/query/kernel", jnp.ones((5, 2, 3, 4))) == MatrixView([1], [2, 3], [0])
    text = zoo.describe(zoo.muon(0.1, dimension_numbers=rules), {"layers": {"kernel": jnp.ones((5, 2, 3))}})
    assert "5 matrices of 2 x 3" in text


@pytest.mark.parametrize("view", [MatrixView(0, 1), optax.contrib.MuonDimensionNumbers(0, 1), None, KERNEL])
@pytest.mark.parametrize("stacked", ["layers/", ("layers/",)])
def test_the_views_of_stacked_leaves_are_those_of_a_layer(view: Any, stacked: Any) -> None:
    layers = {"layers": {"kernel": jnp.ones((5, 2, 3))}}
    tx = zoo.muon(0.1, dimension_numbers=zoo.matrix_rules(("kernel", view), stacked=stacked))
    assert "5 matrices of 2 x 3" in zoo.describe(tx, layers)


@pytest.mark.parametrize(
    ("shape", "view", "sentence"),
    [
        ((5, 3), None, r"a layer of the leaf at 'layers/kernel' of shape \(3,\) is not a matrix"),
        ((5,), None, r"a layer of the leaf at 'layers/kernel' of shape \(\) is not a matrix"),
        ((5, 2, 3), MatrixView(0, 3), r"a layer of the leaf at 'layers/kernel' of shape \(2, 3\) has axes -2 to 1"),
    ],
)
def test_layers_that_a_view_does_not_fit_are_named(shape: Any, view: Any, sentence: str) -> None:
    tx = zoo.muon(0.1, dimension_numbers=zoo.matrix_rules(("kernel", view), stacked="layers/"))
    with pytest.raises(ValueError, match=f"^muon: {sentence}"):
        tx.init({"layers": {"kernel": jnp.ones(shape)}})


@pytest.mark.parametrize("make", [zoo.muon, zoo.mars, zoo.soap, zoo.adafactor])
@pytest.mark.parametrize("entry", ["falback", 3, (0, 1)])
def test_what_is_no_view_is_refused(make: Any, entry: Any) -> None:
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    hint = "; did you mean 'fallback'" if entry == "falback" else ""
    sentence = (
        rf"^{make.__name__}: dimension_numbers must be a MatrixView, None or 'fallback' for the leaf at \['a'\],"
        rf" got .*{hint}"
    )
    with pytest.raises(TypeError, match=sentence):
        make(0.1, dimension_numbers=lambda path, leaf: entry if path == "a" else None).init(params)


def test_beside_the_views_of_optax_none_means_what_it_means_there() -> None:
    params = {"e": jnp.ones((4, 3)), "w": jnp.ones((4, 3))}
    views = {"e": None, "w": optax.contrib.MuonDimensionNumbers()}
    theirs = optax.contrib.muon(0.1, muon_weight_dimension_numbers=views)
    assert [k for k, v in _muon_state(theirs, params).items() if not isinstance(v, optax.MaskedNode)] == ["w"]
    text = zoo.describe(zoo.muon(0.1, dimension_numbers=views), params).partition("\n\n")[2].splitlines()
    assert [line.split("  ")[-1].strip() for line in text[1:]] == ["left to adam", "1 matrix of 4 x 3"]


def _muon_state(tx: optax.GradientTransformation, params: Any) -> Any:
    return optax.tree_utils.tree_get(tx.init(params), "mu", filtering=lambda path, _: "muon" in str(path))


def test_rules_are_no_schedule() -> None:
    rules = zoo.matrix_rules(("w", None), ("*", FALLBACK))
    params = {"e": jnp.ones((4, 3)), "w": jnp.ones((4, 3))}
    injected = optax.inject_hyperparams(zoo.muon)(0.1, dimension_numbers=rules)
    updates, state = injected.update(params, injected.init(params), params)
    plain = zoo.muon(0.1, dimension_numbers=rules)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert jnp.allclose(updates["w"], plain.update(params, plain.init(params), params)[0]["w"], rtol=1e-6)
    assert "ns_steps" not in state.hyperparams


def test_equal_leaves_are_traced_once() -> None:
    one, other = (layout(None, (3, 2), f"muon: the leaf at {path}") for path in ("['a']", "['b']"))
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (
            [("kernel",)],
            r"matrix_rules: a rule must be \(pattern, view\) or \(pattern, view, axes\), got \('kernel',\)",
        ),
        (
            [("kernel", "adam")],
            "matrix_rules: the view of 'kernel' must be a MatrixView, None or 'fallback', got 'adam'",
        ),
        ([lambda path, leaf: None], "matrix_rules: a rule must be"),
    ],
)
def test_what_is_no_rule_is_refused(rules: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        zoo.matrix_rules(*rules)


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        (
            MatrixView(split=4),
            r"muon: the leaf at \['w'\] of shape \(3, 10\) has 10 outputs, which its split into 4 does",
        ),
        (MatrixView(split=(4, 4)), r"has 10 outputs, which its split \(4, 4\) must add up to"),
        (MatrixView(split=0), r"has 10 outputs, which its split into 0 does not divide"),
        (MatrixView(heads=3), r"has a block of 10 outputs, which its 3 heads do not divide"),
        (MatrixView(split=2, heads=3), r"has a block of 5 outputs, which its 3 heads do not divide"),
        (
            FALLBACK,
            r"muon: the leaf at \['w'\] of shape \(3, 10\) is left to the fallback optimizer, which is not here",
        ),
    ],
)
def test_a_view_that_does_not_fit_is_named(view: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        zoo.scale_by_muon(dimension_numbers={"w": view}).init({"w": jnp.ones((3, 10))})


def test_blocks_and_heads_are_matrices_of_their_own() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 3, 12))
    ours = zoo.orthogonalize(x, dimension_numbers=MatrixView(1, 2, batch=0, split=3, heads=2))
    blocks = [zoo.orthogonalize(block) for block in jnp.split(x, 6, axis=2)]
    assert jnp.allclose(ours, jnp.concatenate(blocks, axis=2), atol=1e-5)
    one = zoo.orthogonalize(x[0], dimension_numbers=MatrixView(heads=2))
    assert jnp.allclose(one, jnp.concatenate([zoo.orthogonalize(b) for b in jnp.split(x[0], 2, axis=1)], 1), atol=1e-5)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(32, 8)(tokens)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = nn.RNN(nn.GRUCell(8))(nn.Conv(8, (3,))(x))
        return nn.Dense(32, name="lm_head")(nn.Dense(8, name="qkv")(x))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(32, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.conv = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.qkv = nnx.LoRALinear(8, 8, lora_rank=2, rngs=rngs)
        self.lm_head = nnx.Linear(8, 32, rngs=rngs)


def linen_params() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return Linen().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def nnx_params() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return nnx.split(Nnx(nnx.Rngs(0)), (nnx.Param, nnx.LoRAParam), ...)[1]


def decisions(params: Any, **arguments: Any) -> dict[str, str]:
    """What `describe` says of every leaf, by its path."""
    text = zoo.describe(optax.chain(zoo.muon(0.1, **arguments)), params).partition("\n\n")[2]
    rows = [line.split(maxsplit=1) for line in text.splitlines()[1:]]
    return {path.removesuffix("/value"): rest.partition(")")[2].strip() for path, rest in rows}


@pytest.mark.parametrize("make", [linen_params, nnx_params])
@pytest.mark.parametrize("per_head", [False, True])
def test_flax_names_are_covered(make: Any, per_head: bool) -> None:
    rules = zoo.matrix_rules(("qkv/kernel", MatrixView(split=2, heads=2)), zoo.flax_rules(per_head=per_head))
    params = make()
    said = decisions(params, dimension_numbers=rules)
    assert len(said) == len(jax.tree.leaves(params))
    heads = "2 matrices of 8 x 4" if per_head else "1 matrix of 8 x 8"
    for path, words in said.items():
        *_, module, name = path.split("/")
        if name in ("bias", "scale", "embedding") or module == "lm_head":
            assert words == "left to adam", path
        elif module in ("query", "key", "value"):
            assert words == heads, path
        elif module == "out":
            assert words == (heads if not per_head else "2 matrices of 4 x 8"), path
        elif module == "qkv" and name == "kernel":
            assert words == "4 matrices of 8 x 2", path
        else:
            assert words.startswith("1 matrix of"), path
    updates, _ = zoo.muon(0.1, dimension_numbers=rules).update(
        params, zoo.muon(0.1, dimension_numbers=rules).init(params), params
    )
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_a_kernel_that_flax_rules_cannot_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="muon: no rule covers the leaf at 'general/kernel'"):
        zoo.muon(0.1, dimension_numbers=zoo.flax_rules()).init({"general": {"kernel": jnp.ones((2, 3, 4))}})


def test_describe_shows_the_default_too() -> None:
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3), "conv": jnp.ones((3, 3, 2, 4))}
    assert decisions(params) == {"b": "left to adam", "conv": "left to adam", "w": "1 matrix of 4 x 3"}
    assert decisions(params, muon_mask="hidden")["conv"] == "1 matrix of 18 x 4"


def test_views_are_known_by_their_kind() -> None:
    assert is_view(MatrixView()) and is_view(optax.contrib.MuonDimensionNumbers())
    assert not is_view(FALLBACK) and not is_view(None) and not is_view((0, 1))
