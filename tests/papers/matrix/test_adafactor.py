"""Adafactor: optax's numbers, the paper's in numpy, axes, step sizes, decay, precision, sharded leaves, bad input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_zoo as zoo
from optax_zoo import MatrixView
from tests.support import optax_trajectory, trajectory

STEPS = 12
SHAPES = {"matrix": (3, 7), "kernel": (3, 2, 6, 4), "bias": (6,)}
FACTORED = {"min_dim_size_to_factor": 3}
P = PartitionSpec


def problem(shapes: dict[str, tuple[int, ...]] | None = None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and gradients whose sizes differ from leaf to leaf, row to row and step to step."""
    rng = np.random.default_rng(0)
    params, gradients = {}, {}
    for i, (name, shape) in enumerate((shapes or SHAPES).items()):
        rows = rng.normal(size=(STEPS, *shape[:1], *(1,) * (len(shape) - 1)))
        params[name] = rng.normal(size=shape) * 10.0 ** (1 - 2 * i)
        gradients[name] = rng.normal(size=(STEPS, *shape)) * np.exp(2 * rows)
    return params, gradients


def in_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(np.float32), tree)


def assert_same_steps(ours: Any, theirs: Any, start: Any, rtol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, path in theirs.items():
        moved = np.asarray(path - start[name], np.float64)
        where = {"rtol": rtol, "atol": rtol * np.abs(moved).max(), "err_msg": name}
        np.testing.assert_allclose(np.asarray(ours[name] - start[name], np.float64), moved, **where)


FLAGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "factored": FACTORED,
    "unfactored": {"factored": False, "eps": 1e-3, **FACTORED},
    "unclipped": {"clipping_threshold": None, "decay_rate": 0.5, "min_dim_size_to_factor": 1},
    "absolute": {"multiply_by_parameter_scale": False, "clipping_threshold": 0.3, **FACTORED},
    "no rate": {"learning_rate": None, "momentum": 0.0, **FACTORED},
    "schedule": {"learning_rate": optax.linear_schedule(0.1, 0.01, 9), "momentum": 0.9, **FACTORED},
    "masked decay": {
        "weight_decay_rate": 0.01,
        "weight_decay_mask": lambda tree: jax.tree.map(lambda x: jnp.ndim(x) > 1, tree),
        "momentum": 0.5,
        "dtype_momentum": None,
        **FACTORED,
    },
}


@pytest.mark.parametrize("case", FLAGS)
def test_equals_optax(case: str) -> None:
    arguments = {"learning_rate": 0.05, **FLAGS[case]}
    params, gradients = problem()
    start, pulls = in_float32((params, gradients))
    ours, _ = trajectory(zoo.adafactor(**arguments), start, pulls)
    assert_same_steps(ours, optax_trajectory(optax.adafactor(**arguments), start, pulls), start, 2e-5)


def in_optax(
    learning_rate: float, momentum: float, weight_decay_rate: float, min_dim_size_to_factor: int
) -> optax.GradientTransformation:
    """`optax.adafactor` from optax's parts, with the decay 1 - t**-c in float64, where optax's own is in float32."""
    return optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=min_dim_size_to_factor,
            decay_rate_fn=lambda i, c: 1 - jnp.asarray(i + 1, jnp.float64) ** -c,
        ),
        optax.clip_by_block_rms(1.0),
        optax.scale(learning_rate),
        optax.scale_by_param_block_rms(),
        optax.ema(momentum, debias=False),
        optax.add_decayed_weights(weight_decay_rate),
        optax.scale(-1),
    )


def test_equals_optax_in_float64() -> None:
    arguments: dict[str, Any] = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay_rate": 0.01, **FACTORED}
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adafactor(**arguments, dtype_momentum=None), params, gradients)
        alias = optax_trajectory(optax.adafactor(**arguments, dtype_momentum=None), params, gradients)
        exact = optax_trajectory(in_optax(**arguments), params, gradients)
    assert_same_steps(ours, exact, params, 1e-11)
    assert_same_steps(ours, alias, params, 1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_dim_size_to_factor": 3, "epsilon": 1e-4, "decay_rate": 0.6},
        {"min_dim_size_to_factor": 3, "decay_rate_fn": lambda i, c: jnp.minimum(1.0 - (i + 1.0) ** -c, 0.7)},
    ],
)
def test_the_direction_is_scale_by_factored_rms(arguments: dict[str, Any]) -> None:
    params, gradients = in_float32(problem())
    tail = optax.scale(-0.1)
    ours, _ = trajectory(optax.chain(zoo.scale_by_adafactor(**arguments), tail), params, gradients)
    theirs = optax_trajectory(optax.chain(optax.scale_by_factored_rms(**arguments), tail), params, gradients)
    assert_same_steps(ours, theirs, params, 2e-5)


def test_an_offset_is_subtracted_from_the_steps() -> None:
    params, gradients = in_float32(problem())
    first = jax.tree.map(lambda g: g[0], gradients)
    late, fresh = (zoo.adafactor(0.1, decay_offset=k, **FACTORED) for k in (5, 0))
    update, update_fresh = jax.jit(late.update), jax.jit(fresh.update)
    state, expected = late.init(params)._replace(count=jnp.int32(5)), fresh.init(params)
    for _ in range(2):
        updates, state = update(first, state, params)
        wanted, expected = update_fresh(first, expected, params)
        jax.tree.map(np.testing.assert_array_equal, updates, wanted)
    early, before = update(first, late.init(params), params)
    wanted, after = update_fresh(first, fresh.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, (early, before.v_row, before.v), (wanted, after.v_row, after.v))


def in_numpy(
    params: dict[str, np.ndarray],
    gradients: dict[str, np.ndarray],
    *,
    lr: float | None,
    warmup_init: bool,
    scale_parameter: bool,
    beta1: float | None,
    weight_decay: float,
    clip_threshold: float = 1.0,
    c: float = 0.8,
    eps: tuple[float, float] = (1e-30, 1e-3),
) -> dict[str, np.ndarray]:
    """Algorithm 4 of the paper for the last two axes, and 5 for vectors, with the options of Hugging Face's class."""

    def rms(x: np.ndarray) -> float:
        return np.sqrt(np.mean(x * x))

    paths = {}
    for name, x in params.items():
        r, col, v, m, path = 0.0, 0.0, 0.0, 0.0, []
        for t, g in enumerate(gradients[name], 1):
            rho = lr if lr is not None else min(1e-6 * t if warmup_init else 1e-2, 1 / np.sqrt(t))
            alpha = rho * max(eps[1], rms(x)) if scale_parameter else rho
            b2 = 1 - t**-c
            square = g * g + eps[0]
            if x.ndim >= 2:
                r = b2 * r + (1 - b2) * square.mean(-1)
                col = b2 * col + (1 - b2) * square.mean(-2)
                mean = np.mean(r, axis=-1)[..., None, None]
                estimate = r[..., :, None] * col[..., None, :] / mean
            else:
                estimate = v = b2 * v + (1 - b2) * square
            u = g / np.sqrt(estimate)
            u = alpha * u / max(1.0, rms(u) / clip_threshold)
            if beta1 is not None:
                u = m = beta1 * m + (1 - beta1) * u
            x = x - weight_decay * alpha * x - u
            path.append(x)
        paths[name] = np.stack(path)
    return paths


@pytest.mark.parametrize(
    ("step", "scale_parameter", "weight_decay", "beta1"),
    [
        ("relative", True, 0.0, None),
        ("warmup", True, 0.1, 0.9),
        ("relative", False, 0.1, None),
        (0.02, True, 0.1, 0.9),
        (0.02, False, 0.0, 0.9),
    ],
)
def test_equals_the_paper_in_numpy(step: Any, scale_parameter: bool, weight_decay: float, beta1: float | None) -> None:
    params, gradients = problem()
    relative = isinstance(step, str)
    with jax.enable_x64(True):
        tx = zoo.adafactor(
            None if relative else step,
            min_dim_size_to_factor=1,
            relative_step=relative,
            warmup_init=step == "warmup",
            multiply_by_parameter_scale=scale_parameter,
            momentum=beta1,
            dtype_momentum=None,
            weight_decay_rate=weight_decay,
            scale_weight_decay=True,
            dimension_numbers=lambda path, x: MatrixView(-2, -1, range(x.ndim - 2)) if x.ndim > 1 else None,
        )
        ours, _ = trajectory(tx, params, gradients)
    expected = in_numpy(
        params,
        gradients,
        lr=None if relative else step,
        warmup_init=step == "warmup",
        scale_parameter=scale_parameter,
        beta1=beta1,
        weight_decay=weight_decay,
    )
    assert_same_steps(ours, expected, params, 1e-10)


@pytest.mark.parametrize("warmup", [False, True])
def test_relative_steps_are_those_of_the_paper(warmup: bool) -> None:
    tx = zoo.adafactor(relative_step=True, warmup_init=warmup)
    params = {"w": jnp.ones((2,))}
    state = tx.init(params)
    for t in (1, 2, 9_999, 10_000, 40_000, 1_000_000):
        _, after = tx.update(params, state._replace(count=jnp.int32(t - 1)), params)
        expected = min(1e-6 * t if warmup else 1e-2, t**-0.5)
        np.testing.assert_allclose(after.learning_rate, expected, rtol=1e-6)


def test_the_first_direction_of_a_rank_one_square_is_the_sign() -> None:
    rng = np.random.default_rng(0)
    for shape in ((4, 6), (6, 4)):
        size = np.exp(rng.normal(size=(shape[0], 1)) + rng.normal(size=(1, shape[1])))
        g = jnp.asarray(size * rng.choice([-1, 1], shape), jnp.float32)
        for eps in (1e-30, 0.0):
            tx = zoo.scale_by_adafactor(min_dim_size_to_factor=1, epsilon=eps)
            u, _ = tx.update({"w": g}, tx.init({"w": g}))
            np.testing.assert_allclose(u["w"], jnp.sign(g), rtol=1e-5)


def test_updates_are_clipped_by_their_root_mean_square() -> None:
    params = {"w": jnp.full((3, 4), 2.0)}
    tx = zoo.adafactor(0.1, clipping_threshold=0.5, min_dim_size_to_factor=1)
    updates, _ = tx.update({"w": jnp.ones((3, 4))}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * 2.0 * 0.5, rtol=1e-5)


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
        TypeError, match="adafactor: min_dim_size_to_factor must be no array; name it in the static_args"
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
        ({"min_dim_size_to_factor": "all"}, TypeError, "min_dim_size_to_factor must be a number"),
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
