"""Adafactor on its leaves: which axes are factored, dtypes, devices, bad input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import optax_zoo as zoo
from optax_zoo import MatrixView
from tests.papers.matrix.test_adafactor import SHAPES, P, in_float32, problem


def factors(shape: tuple[int, ...], **arguments: Any) -> list[tuple[int, ...] | None]:
    """The shapes of v_row, v_col and v."""
    state = jax.eval_shape(zoo.adafactor(0.1, **arguments).init, {"w": jnp.ones(shape)})
    return [None if leaf is None else leaf.shape for leaf in (state.v_row["w"], state.v_col["w"], state.v["w"])]


HEADS = MatrixView(0, 2, 1)


@pytest.mark.parametrize(
    ("shape", "arguments", "expected"),
    [
        ((128, 256), {}, [(128,), (256,), None]),
        ((256, 128), {}, [(128,), (256,), None]),
        ((127, 256), {}, [None, None, (127, 256)]),
        ((3, 128, 200), {}, [(3, 128), (3, 200), None]),
        ((128, 3, 200), {}, [(128, 3), (3, 200), None]),
        ((4, 4), {"min_dim_size_to_factor": 1}, [(4,), (4,), None]),
        ((4, 1), {"min_dim_size_to_factor": 1}, [(1,), (4,), None]),
        ((4,), {"min_dim_size_to_factor": 1}, [None, None, (4,)]),
        ((), {"min_dim_size_to_factor": 1}, [None, None, ()]),
        ((0, 4), {"min_dim_size_to_factor": 0}, [None, None, (0, 4)]),
        ((6, 2, 5), {"min_dim_size_to_factor": 5, "dimension_numbers": HEADS}, [(6, 2), (2, 5), None]),
        ((6, 2, 5), {"min_dim_size_to_factor": 6, "dimension_numbers": HEADS}, [None, None, (6, 2, 5)]),
        ((6, 2, 5), {"min_dim_size_to_factor": 6, "dimension_numbers": MatrixView(0, (1, 2))}, [(6,), (2, 5), None]),
        ((6,), {"dimension_numbers": MatrixView()}, [None, None, (6,)]),
        (
            (2, 3, 4),
            {"min_dim_size_to_factor": 3, "dimension_numbers": optax.contrib.MuonDimensionNumbers(1, 2)},
            [(2, 3), (2, 4), None],
        ),
    ],
)
def test_which_axes_are_factored(shape: Any, arguments: dict[str, Any], expected: Any) -> None:
    assert factors(shape, **arguments) == expected


def test_unfactored_state_is_one_number_a_parameter() -> None:
    params = in_float32(problem()[0])
    state = zoo.adafactor(0.1, factored=False).init(params)
    assert (state.v_row, state.v_col, state.m) == (None, None, None)
    assert jax.tree.map(jnp.shape, state.v) == SHAPES
    mapped = optax.tree_map_params(
        zoo.adafactor(0.1, factored=False), lambda leaf, p: leaf.shape == p.shape, state, params
    )
    assert all(jax.tree.leaves(mapped.v))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_batch_axes_are_separate_matrices(axis: int) -> None:
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=(3, 4, 5)) * np.exp(rng.normal(size=(3, 4, 1))), jnp.float32)
    rest = [i for i in range(3) if i != axis]
    views = {"stack": MatrixView(*rest, axis)}
    stacked = zoo.scale_by_adafactor(min_dim_size_to_factor=1, dimension_numbers=views)
    alone = zoo.scale_by_adafactor(min_dim_size_to_factor=1)
    state = stacked.init({"stack": g})
    states = [alone.init({"w": jnp.take(g, i, axis)}) for i in range(g.shape[axis])]
    for scale in (1.0, 0.5):
        u, state = stacked.update({"stack": scale * g}, state)
        for i, own in enumerate(states):
            v, states[i] = alone.update({"w": scale * jnp.take(g, i, axis)}, own)
            np.testing.assert_allclose(jnp.take(u["stack"], i, axis), v["w"], rtol=1e-5)


def test_axes_of_one_kind_are_flattened_together() -> None:
    g = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 5)), jnp.float32)
    tx = zoo.scale_by_adafactor(min_dim_size_to_factor=1, dimension_numbers=MatrixView((0, 1, 2), 3))
    flat = zoo.scale_by_adafactor(min_dim_size_to_factor=1)
    u, _ = tx.update({"w": g}, tx.init({"w": g}))
    v, _ = flat.update({"w": g.reshape(24, 5)}, flat.init({"w": g.reshape(24, 5)}))
    np.testing.assert_allclose(u["w"].reshape(24, 5), v["w"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_second_moments_in_float32(dtype: Any) -> None:
    params, gradients = problem({"w": (4, 6), "b": (3,)})
    params, pulls = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, gradients))
    wide, wide_pulls = jax.tree.map(lambda x: x.astype(jnp.float32), (params, pulls))
    tx = zoo.adafactor(0.01, momentum=0.9, min_dim_size_to_factor=1)
    update, state, exact = jax.jit(tx.update), tx.init(params), tx.init(wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)[1:]} == {jnp.dtype(jnp.float32)}
    for i in range(3):
        updates, state = update(jax.tree.map(lambda g, i=i: g[i], pulls), state, params)
        expected, exact = update(jax.tree.map(lambda g, i=i: g[i], wide_pulls), exact, wide)
        for name, u in updates.items():
            assert u.dtype == dtype
            np.testing.assert_array_equal(u, expected[name].astype(dtype))


def test_the_momentum_is_kept_in_its_dtype() -> None:
    params = {"w": jnp.ones((3, 4), jnp.bfloat16)}
    for dtype, kept in ((None, jnp.bfloat16), (jnp.float16, jnp.float16), ("float32", jnp.float32)):
        tx = zoo.adafactor(0.1, momentum=0.9, dtype_momentum=dtype)
        assert jax.eval_shape(tx.init, params).m["w"].dtype == kept


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_zero_gradients_without_eps_are_zero_updates(dtype: Any) -> None:
    params = {"w": jnp.ones((3, 4), dtype), "b": jnp.ones((3,), dtype)}
    tx = zoo.adafactor(0.1, eps=0.0, min_dim_size_to_factor=1)
    half = {"w": params["w"].at[1].set(0).at[:, 2].set(0), "b": params["b"].at[1].set(0)}
    for g in (half, jax.tree.map(jnp.zeros_like, params)):
        updates, _ = tx.update(g, tx.init(params), params)
        for name, u in updates.items():
            assert np.isfinite(u).all()
            np.testing.assert_array_equal(np.asarray(u == 0), np.asarray(g[name] == 0))


def test_a_nan_is_not_hidden() -> None:
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones((3,))}
    tx = zoo.scale_by_adafactor(min_dim_size_to_factor=1)
    u, _ = tx.update({"w": params["w"].at[1, 2].set(jnp.nan), "b": params["b"].at[1].set(jnp.nan)}, tx.init(params))
    assert jnp.isnan(u["w"][1]).all()
    assert jnp.isnan(u["w"][:, 2]).all()
    np.testing.assert_array_equal(jnp.isnan(u["b"]), [False, True, False])


def test_weight_decay_ignores_the_learning_rate_unless_told() -> None:
    params = {"w": jnp.full((3, 4), 2.0), "b": jnp.full((3,), 5.0)}
    zero = jax.tree.map(jnp.zeros_like, params)

    def taken(**arguments: Any) -> dict[str, float]:
        tx = zoo.adafactor(0.1, weight_decay_rate=0.01, **arguments)
        updates = jax.jit(lambda p: tx.update(zero, tx.init(p), p)[0])(params)
        return {name: float(-updates[name].ravel()[0]) for name in updates}

    def approx(**expected: float) -> Any:
        return {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}

    assert taken() == approx(w=0.02, b=0.05)
    assert taken(weight_decay_mask={"w": True, "b": False}) == approx(w=0.02, b=0.0)
    assert taken(scale_weight_decay=True) == approx(w=0.1 * 2.0 * 0.02, b=0.1 * 5.0 * 0.05)
    assert taken(scale_weight_decay=True, multiply_by_parameter_scale=False) == approx(w=0.002, b=0.005)


def test_small_weights_move_by_the_least_scale() -> None:
    params = {"w": jnp.zeros((3,))}
    for arguments, scale in (({}, 1e-3), ({"min_scale": 0.5}, 0.5)):
        tx = zoo.adafactor(0.1, **arguments)
        updates, _ = tx.update({"w": jnp.ones((3,))}, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], -0.1 * scale, rtol=1e-6)


SHARDED = {"w": (8, 12), "s": (8, 3, 6), "t": (6, 8, 4), "v": (8,)}
VIEWS = {"w": None, "s": MatrixView(1, 2, 0), "t": MatrixView(1, 2, 0), "v": None}
SPECS = {"w": P("x", "y"), "s": P("x"), "t": P(None, ("x", "y")), "v": P(("x", "y"))}
CUT = {"w": (P("x"), P("y")), "s": (P("x"), P("x")), "t": (P(None, ("x", "y")), P()), "v": None}


@pytest.mark.parametrize("kept", ["whole", "cut"])
def test_blocks_inside_shard_map_are_the_whole_leaf(kept: str) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    params, gradients = in_float32(problem(SHARDED))
    arguments: dict[str, Any] = {"momentum": 0.9, "min_dim_size_to_factor": 3, "dimension_numbers": VIEWS}
    tx = zoo.adafactor(0.1, **arguments)
    state = tx.init(params)
    rows, columns = (
        {name: None if cut is None else cut[side] if kept == "cut" else P() for name, cut in CUT.items()}
        for side in (0, 1)
    )
    entries = {name: spec if CUT[name] is None else None for name, spec in SPECS.items()}
    specs = type(state)(P(), P(), rows, columns, entries, SPECS)
    jax.tree.map(lambda _, spec: spec, state, specs)  # of the same structure

    def update(grads: Any, state: Any, params: Any) -> Any:
        return tx.update(grads, state, params, param_specs=SPECS)

    sharded = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=(SPECS, specs, SPECS), out_specs=(SPECS, specs)))
    plain = jax.jit(tx.update)
    alone = state
    for i in range(2):
        grads = jax.tree.map(lambda g, i=i: g[i], gradients)
        updates, state = sharded(grads, state, params)
        expected, alone = plain(grads, alone, params)
        jax.tree.map(assert_close, (updates, state), (expected, alone))


def assert_close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6 * np.abs(b).max())


def over_rows(function: Callable[..., Any], specs: Any, *args: Any) -> Any:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    return jax.eval_shape(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("x")), *args)


def test_blocks_without_specs() -> None:
    """Unfactored leaves need none; others ask for them, and their state is made outside."""
    leaf = {"w": jnp.ones((8, 12))}
    row = {"w": P("x")}
    plain = zoo.adafactor(0.1)

    def update(tx: Any) -> Callable[..., Any]:
        return lambda g, state, p: tx.update(g, state, p)[0]

    state = plain.init(leaf)
    specs = jax.tree.map(lambda x: P("x") if x.ndim else P(), state)
    assert over_rows(update(plain), (row, specs, row), leaf, state, leaf)["w"].shape == (8, 12)
    with pytest.raises(
        ValueError, match=r"adafactor: a leaf of shape \(1, 12\) has a second moment of shape \(8, 12\)"
    ):
        over_rows(update(plain), (row, P(), row), leaf, state, leaf)
    factored = zoo.adafactor(0.1, min_dim_size_to_factor=2)
    with pytest.raises(ValueError, match=r"adafactor: a leaf of shape \(1, 12\) is one device's block .* param_specs"):
        over_rows(update(factored), (row, P(), row), leaf, factored.init(leaf), leaf)
    with pytest.raises(ValueError, match=r"adafactor: a leaf of shape \(1, 12\) .* call init outside of shard_map"):
        over_rows(lambda p: factored.init(p).v_row["w"], (row,), leaf)


def test_state_of_another_shape_is_refused() -> None:
    tx = zoo.adafactor(0.1, min_dim_size_to_factor=2)
    grads, other = ({"w": jnp.ones(shape)} for shape in ((3, 4), (3, 5)))
    with pytest.raises(
        ValueError, match=r"adafactor: a leaf of shape \(3, 4\) has means of shape \(4,\), and .* \(5,\)"
    ):
        tx.update(grads, tx.init(other), grads)
    with pytest.raises(ValueError, match=r"adafactor: a leaf of shape \(3, 1\) is not factored"):
        tx.update({"w": jnp.ones((3, 1))}, tx.init(other), {"w": jnp.ones((3, 1))})


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_jitted_init_lays_means_out_like_the_axes_they_keep(axis_type: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        params = jax.device_put({"w": jnp.ones((8, 12))}, NamedSharding(mesh, P("x", "y")))
        state = jax.jit(zoo.adafactor(0.1, min_dim_size_to_factor=2).init)(params)
        for factor, spec in ((state.v_row, P("x")), (state.v_col, P("y"))):
            assert factor["w"].sharding.is_equivalent_to(NamedSharding(mesh, spec), 1)


def test_injected_hyperparameters_leave_the_structure_alone() -> None:
    params = {"w": jnp.ones((3, 4))}
    static = optax.inject_hyperparams(zoo.adafactor, static_args="min_dim_size_to_factor")(
        0.1, min_dim_size_to_factor=2
    )
    assert optax.tree.get(static.init(params), "v_row")["w"].shape == (3,)
    with pytest.raises(
        TypeError, match="adafactor: min_dim_size_to_factor must be known when the state is made; name it in the static"
    ):
        optax.inject_hyperparams(zoo.adafactor)(0.1, min_dim_size_to_factor=2).init(params)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"learning_rate": 0.1, "relative_step": True}, ValueError, "relative_step excludes a learning_rate, got 0.1"),
        ({"warmup_init": True}, ValueError, "warmup_init needs relative_step"),
        ({"decay_rate": -0.8}, ValueError, r"decay_rate must be in \[0, inf\), got -0.8"),
        ({"clipping_threshold": 0.0}, ValueError, r"clipping_threshold must be in \(0, inf\), got 0.0"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay_rate": -1.0}, ValueError, "weight_decay_rate must be in"),
        ({"min_scale": -1.0}, ValueError, "min_scale must be in"),
        ({"min_dim_size_to_factor": -1}, ValueError, r"min_dim_size_to_factor must be in \[0, inf\), got -1"),
        ({"min_dim_size_to_factor": 1.5}, TypeError, "min_dim_size_to_factor must be an integer, got 1.5"),
        ({"min_dim_size_to_factor": "all"}, TypeError, "min_dim_size_to_factor must be an integer, got 'all'"),
        ({"momentum": 0.9, "dtype_momentum": "int8"}, TypeError, "'int8' is not a floating dtype"),
        ({"beta1": 0.9}, TypeError, "no argument 'beta1'"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^adafactor: {words}"):
        zoo.adafactor(**arguments)


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (MatrixView(0, 0), "needs a view that names every axis once"),
        (MatrixView(0, 2), "has axes -2 to 1"),
        (MatrixView(0, 1, split=(2, 2)), "has a view with blocks"),
        ({"v": MatrixView()}, "dimension_numbers has no entry"),
    ],
)
def test_views_that_do_not_fit(view: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^adafactor: .*{words}"):
        zoo.adafactor(0.1, dimension_numbers=view).init({"w": jnp.ones((3, 4))})


@pytest.mark.parametrize(("name", "value"), [("step_offset", -1), ("epsilon", -1.0), ("decay_rate", -0.8)])
def test_bad_input_of_the_direction(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^adafactor: {name} must be in \[0, inf\), got {value}"):
        zoo.scale_by_adafactor(**{name: value})
