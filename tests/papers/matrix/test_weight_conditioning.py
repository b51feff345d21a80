"""Weight conditioning: recorded values and VJPs, unit norms, invariances, singular values, zero rows, frameworks."""

import itertools
import json
from pathlib import Path
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import optax_zoo as zoo
from optax_zoo.matrix.weight_conditioning import Mode

GOLDEN = Path(__file__).parents[2] / "golden" / "weight_conditioning.basic.npz"
MODES = get_args(Mode)
SPREAD = np.logspace(-3, 3, 5)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def condition_number(w: Any) -> float:
    return float(np.linalg.cond(np.asarray(w, np.float64)))


@pytest.mark.parametrize("leaf", ["w", "k"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_recorded_values_and_vjps(leaf: str, mode: Mode) -> None:
    with np.load(GOLDEN, allow_pickle=False) as file, jax.enable_x64(True):
        meta = json.loads(str(file["meta"]))
        close = {"rtol": meta["rtol"], "atol": 1e-3 * meta["rtol"]}
        w, cotangent = jnp.asarray(file[f"in/{leaf}"]), jnp.asarray(file[f"in/g{leaf}"])
        for stop, kind in ((False, "flow"), (True, "stop")):
            out, vjp = jax.vjp(lambda w, s=stop: zoo.weight_conditioning(w, mode=mode, stop_gradient=s, eps=1e-12), w)
            np.testing.assert_allclose(out, file[f"out/{leaf}_{mode}"], **close)
            np.testing.assert_allclose(vjp(cotangent)[0], file[f"out/{leaf}_{mode}_vjp_{kind}"], **close)


@pytest.mark.parametrize("shape", [(6, 5), (1, 4), (4, 1), (3, 2, 4, 5)])
def test_output_units_have_norm_one_and_stay(shape: tuple[int, ...]) -> None:
    w = jnp.asarray(gaussian(*shape), jnp.float32)
    once = zoo.weight_conditioning(w)
    np.testing.assert_allclose(np.linalg.norm(np.reshape(once, (-1, shape[-1])), axis=0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(zoo.weight_conditioning(once), once, rtol=1e-6)
    column = zoo.weight_conditioning(w, mode="column")
    np.testing.assert_allclose(np.linalg.norm(column, axis=-1), 1.0, rtol=1e-6)


def test_the_scale_of_a_unit_does_not_matter() -> None:
    w = jnp.asarray(gaussian(6, 5), jnp.float32)
    scaled = w * jnp.asarray(SPREAD, jnp.float32)[None, :]
    np.testing.assert_allclose(zoo.weight_conditioning(scaled), zoo.weight_conditioning(w), rtol=1e-5)
    tall = w.T * jnp.asarray(SPREAD, jnp.float32)[:, None]
    columns = (zoo.weight_conditioning(x, mode="column") for x in (tall, w.T))
    np.testing.assert_allclose(*columns, rtol=1e-5)


def test_row_column_is_rows_and_then_columns() -> None:
    w = jnp.asarray(gaussian(6, 5), jnp.float32)
    rows = zoo.weight_conditioning(w, mode="row")
    both = zoo.weight_conditioning(w, mode="row_column")
    np.testing.assert_allclose(both, zoo.weight_conditioning(rows, mode="column"), rtol=1e-6)


def test_the_vjp_is_upright_on_the_weights_of_each_unit() -> None:
    w, g = (jnp.asarray(gaussian(6, 5, seed=seed), jnp.float32) for seed in (0, 1))
    out, vjp = jax.vjp(zoo.weight_conditioning, w)
    (back,) = vjp(g)
    np.testing.assert_allclose(jnp.sum(back * out, axis=0), 0.0, atol=1e-5)
    expected = (g - out * jnp.sum(out * g, axis=0)[None, :]) / np.linalg.norm(w, axis=0)[None, :]
    np.testing.assert_allclose(back, expected, rtol=1e-4, atol=1e-6)
    (constant,) = jax.vjp(lambda w: zoo.weight_conditioning(w, stop_gradient=True), w)[1](g)
    np.testing.assert_allclose(constant, g / np.linalg.norm(w, axis=0)[None, :], rtol=1e-5)


def test_output_axes_say_what_a_unit_is() -> None:
    w = jnp.asarray(gaussian(6, 4, 5), jnp.float32)
    torch = zoo.weight_conditioning(w.T, output_axis=0)
    np.testing.assert_allclose(torch, zoo.weight_conditioning(w).T, rtol=1e-6)
    heads = zoo.weight_conditioning(w, output_axis=(-2, 2))
    np.testing.assert_allclose(np.linalg.norm(heads, axis=0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(heads.reshape(6, 20), zoo.weight_conditioning(w.reshape(6, 20)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_zero_units_stay_zero_and_have_a_gradient(dtype: Any) -> None:
    w = jnp.asarray(gaussian(4, 3), dtype).at[:, 1].set(0).at[2].set(0)
    leaves = (w, jnp.zeros_like(w), jnp.zeros((0, 3), dtype))

    @jax.jit
    def both() -> list[tuple[Array, Array, Array]]:
        results = []
        for x, mode, eps in itertools.product(leaves, MODES, (0.0, 0.01)):
            out, vjp = jax.vjp(lambda w, m=mode, e=eps: zoo.weight_conditioning(w, mode=m, eps=e), x)
            results.append((x, out, *vjp(jnp.ones_like(out))))
        return results

    for x, out, back in both():
        assert out.dtype == back.dtype == dtype
        assert out.shape == back.shape == x.shape
        assert np.isfinite(out).all()
        assert np.isfinite(back).all()
        np.testing.assert_array_equal(np.asarray(out == 0), np.asarray(x == 0))


def test_eps_is_the_least_divisor() -> None:
    w = jnp.asarray([[3e-4, 3.0], [4e-4, 4.0]])
    out, vjp = jax.vjp(lambda w: zoo.weight_conditioning(w, eps=1e-3), w)
    np.testing.assert_allclose(out, [[0.3, 0.6], [0.4, 0.8]], rtol=1e-5)
    np.testing.assert_allclose(vjp(jnp.ones_like(w))[0][:, 0], 1e3, rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(lambda w, eps: zoo.weight_conditioning(w, eps=eps))(w, 1e-3), out)


def test_it_narrows_the_range_of_singular_values() -> None:
    """Of badly scaled units; and no other scaling of units is better by more than the root of their number."""
    gains = []
    for seed in range(20):
        even = gaussian(12, 5, seed=seed)
        w = jnp.asarray(even * SPREAD, jnp.float32)
        s = np.linalg.svd(w, compute_uv=False)
        conditioned = np.linalg.svd(zoo.weight_conditioning(w), compute_uv=False)
        assert np.ptp(conditioned) < 0.01 * np.ptp(s)
        gains.append(condition_number(w) / (conditioned[0] / conditioned[-1]))
        others = [even * scale for scale in np.exp(gaussian(200, 1, 5, seed=seed))]
        best = min(condition_number(other) for other in [even, *others])
        assert conditioned[0] / conditioned[-1] <= np.sqrt(5) * best
    assert min(gains) > 1e4


def test_a_network_trained_on_an_ill_scaled_problem_has_narrower_singular_values() -> None:
    x = jnp.asarray(gaussian(64, 8), jnp.float32)
    target = jnp.asarray(np.tanh(gaussian(64, 8) @ gaussian(8, 4, seed=1)) * np.logspace(-1, 1, 4), jnp.float32)

    def start(seed: int) -> dict[str, Array]:
        draws = [gaussian(*shape, seed=seed) for shape in ((8, 16), (16, 4))]
        first, second = (jnp.asarray(w / np.sqrt(len(w)), jnp.float32) for w in draws)
        return {"first": first, "second": second, "gain": jnp.ones((4,)), "bias": jnp.zeros((4,))}

    def train(conditioning: bool, params: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        def effective(params: dict[str, Array]) -> dict[str, Array]:
            return zoo.condition_params(params) if conditioning else params

        def loss(params: dict[str, Array]) -> Array:
            w = effective(params)
            out = jnp.tanh(x @ w["first"]) @ w["second"] * w["gain"][None, :] + w["bias"][None, :]
            return jnp.mean(jnp.square(out - target))

        tx = optax.adam(0.01)

        def step(carry: Any, _: None) -> Any:
            value, grads = jax.value_and_grad(loss)(carry[0])
            updates, state = tx.update(grads, carry[1])
            return (optax.apply_updates(carry[0], updates), state), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), None, 200)
        return effective(params), values

    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(start, range(4)))
    with jax.numpy_dtype_promotion("standard"):
        (plain, _), (narrow, loss) = (
            jax.jit(jax.vmap(lambda params, c=conditioning: train(c, params)))(starts) for conditioning in (False, True)
        )
    assert (loss[:, -1] < 0.1 * loss[:, 0]).all()
    for name in ("first", "second"):
        before, after = (np.linalg.svd(params[name], compute_uv=False) for params in (plain, narrow))
        assert (np.ptp(after, axis=1) < np.ptp(before, axis=1)).all(), name
    assert (after[:, 0] / after[:, -1] < before[:, 0] / before[:, -1]).all(), "the units that the targets scale badly"


PARAMS = {"embed": jnp.ones((3, 2)), "block": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones((2,))}, "none": None}


@pytest.mark.parametrize(
    ("predicate", "conditioned"),
    [
        (None, {"['embed']", "['block']['kernel']"}),
        (zoo.muon_mask_by_path(), {"['block']['kernel']"}),
        (lambda path, leaf: path == "embed", {"['embed']"}),
        ({"embed": False, "block": {"kernel": True, "bias": False}, "none": None}, {"['block']['kernel']"}),
        (lambda params: jax.tree.map(lambda leaf: leaf.shape == (2, 2), params), {"['block']['kernel']"}),
        (False, set()),
    ],
)
def test_predicates_choose_leaves(predicate: Any, conditioned: set[str]) -> None:
    out = zoo.condition_params(PARAMS, predicate)
    assert jax.tree.structure(out) == jax.tree.structure(PARAMS)
    pairs = zip(jax.tree.leaves_with_path(out), jax.tree.leaves(PARAMS), strict=True)
    assert {jax.tree_util.keystr(path) for (path, new), old in pairs if new is not old} == conditioned


def test_condition_params_passes_its_arguments_on() -> None:
    params = {"w": jnp.asarray(gaussian(4, 3), jnp.float32), "n": jnp.ones((2, 2), jnp.int32)}
    arguments: dict[str, Any] = {"mode": "row_column", "eps": 0.5, "stop_gradient": True}
    out = zoo.condition_params(params, output_axis=0, **arguments)
    np.testing.assert_array_equal(out["w"], zoo.weight_conditioning(params["w"], output_axis=0, **arguments))
    assert out["n"] is params["n"]
    for axes in ({"w": (0,), "n": 0}, lambda path, leaf: 0, (0,)):
        np.testing.assert_array_equal(zoo.condition_params(params, output_axis=axes, **arguments)["w"], out["w"])


def fits(params: Any, predict: Any) -> None:
    """A few steps on the raw weights lower the loss of the conditioned model, under jit."""
    target = jnp.ones((4, 3))

    @jax.jit
    def step(params: Any) -> tuple[Any, Array]:
        def loss(params: Any) -> Array:
            return jnp.mean(jnp.square(predict(zoo.condition_params(params)) - target))

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    first = None
    for _ in range(5):
        params, value = step(params)
        first = value if first is None else first
    assert float(value) < float(first)


X = jnp.asarray(gaussian(4, 2), jnp.float32)


def test_inside_a_linen_model() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            return nn.Dense(3)(nn.tanh(nn.Dense(8)(x)))

    params = Net().init(jax.random.key(0), X)["params"]
    fits(params, lambda params: Net().apply({"params": params}, X))


def test_inside_an_nnx_model() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.hidden, self.head = nnx.Linear(2, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x: Array) -> Array:
            return self.head(nnx.tanh(self.hidden(x)))

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    conditioned = nnx.merge(graph, zoo.condition_params(params, lambda path, leaf: path.startswith("hidden/kernel")))
    np.testing.assert_allclose(np.linalg.norm(conditioned.hidden.kernel[...], axis=0), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(conditioned.head.kernel[...], params["head"]["kernel"][...])
    fits(params, lambda params: nnx.merge(graph, params)(X))


def attention(model: str) -> Any:
    x = jnp.ones((1, 3, 8))
    if model == "linen":
        return nn.MultiHeadDotProductAttention(2).init(jax.random.key(0), x, x)
    return nnx.state(nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param)


@pytest.mark.parametrize("predicate", [None, zoo.muon_mask_by_path()])
@pytest.mark.parametrize("model", ["linen", "nnx"])
def test_biases_of_several_axes_are_left_alone(model: str, predicate: Any) -> None:
    params = attention(model)
    conditioned = jax.tree_util.tree_flatten_with_path(zoo.condition_params(params, predicate))[0]
    before = jax.tree.leaves(params)
    changed = [bool(jnp.any(x != y)) for (_, x), y in zip(conditioned, before, strict=True)]
    assert changed == ["kernel" in jax.tree_util.keystr(path) for path, _ in conditioned]
    assert any(y.ndim == 2 and not change for y, change in zip(before, changed, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("a", "b"), P(("a", "b"))])
def test_blocks_are_conditioned_as_the_whole(mode: Mode, spec: P) -> None:
    w = jnp.asarray(gaussian(8, 4), jnp.float32)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))

    def over(function: Any) -> Any:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec))(w)

    expected = zoo.weight_conditioning(w, mode=mode)
    np.testing.assert_allclose(over(lambda w: zoo.weight_conditioning(w, mode=mode, spec=spec)), expected, rtol=1e-6)
    tree = over(lambda w: zoo.condition_params({"w": w}, mode=mode, param_specs=spec)["w"])
    np.testing.assert_allclose(tree, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"weight_conditioning: w is one device's block along mesh axis 'a', .* spec="):
        over(lambda w: zoo.weight_conditioning(w, mode=mode))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_unit_is_too_small_or_too_large(scale: float) -> None:
    w = jnp.asarray(gaussian(6, 5), jnp.float32)
    out = zoo.weight_conditioning(jnp.float32(scale) * w, eps=0.0)
    np.testing.assert_allclose(out, zoo.weight_conditioning(w), rtol=1e-6)


def test_a_nan_spoils_its_unit_and_no_other() -> None:
    w = jnp.asarray(gaussian(6, 5), jnp.float32)
    ill = np.asarray(zoo.weight_conditioning(w.at[2, 3].set(jnp.nan)))
    assert np.isnan(ill[:, 3]).all()
    np.testing.assert_array_equal(np.delete(ill, 3, 1), np.delete(np.asarray(zoo.weight_conditioning(w)), 3, 1))


def test_inside_plain_functions() -> None:
    params = [(jnp.asarray(gaussian(2, 8), jnp.float32), jnp.zeros((1, 8))), jnp.asarray(gaussian(8, 3), jnp.float32)]

    def predict(params: Any) -> Array:
        (w, b), head = params
        return jnp.tanh(X @ w + b) @ head

    fits(params, predict)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"mode": "rows"}, ValueError, "weight_conditioning: mode must be one of .*did you mean 'row'"),
        ({"eps": -1.0}, ValueError, r"weight_conditioning: eps must be in \[0, inf\), got -1.0"),
        ({"eps": lambda t: 0.0}, TypeError, "weight_conditioning: eps must be a number"),
        ({"output_axis": 2}, ValueError, r"weight_conditioning: w of shape \(3, 2\) .*\[-2, 1\], got 2"),
        ({"output_axis": 1.0}, TypeError, "weight_conditioning: w needs an integer output_axis"),
        ({"output_axis": True}, TypeError, "weight_conditioning: w needs an integer output_axis"),
        ({"output_axis": (0, -2)}, ValueError, "each once"),
        ({"output_axis": (0, 1)}, ValueError, "not all"),
        ({"output_axis": ()}, ValueError, "needs some"),
        ({"w": jnp.ones((3,))}, ValueError, r"weight_conditioning: w of shape \(3,\) is not a matrix"),
        ({"w": jnp.ones((3, 2), jnp.int32)}, TypeError, "weight_conditioning: w must be floating or complex, got int"),
        ({"axis": 0}, TypeError, "weight_conditioning: no argument 'axis'"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        zoo.weight_conditioning(**{"w": jnp.ones((3, 2)), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"predicate": True}, ValueError, r"condition_params: the leaf at \['block'\]\['bias'\] of shape \(2,\)"),
        ({"predicate": lambda path, leaf: 1}, TypeError, "condition_params: the leaf at .* True or False, got 1"),
        ({"predicate": {"embed": True}}, ValueError, "condition_params: predicate has no entry"),
        ({"output_axis": 5}, ValueError, r"condition_params: the leaf at \['block'\]\['kernel'\]"),
        ({"mode": "diagonal"}, ValueError, "condition_params: mode must be one of"),
    ],
)
def test_bad_trees(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        zoo.condition_params(PARAMS, **arguments)
