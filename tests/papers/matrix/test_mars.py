"""MARS: its boxes transcribed, its limits, who goes where, and the exact form."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from optax_zoo._core.views import MatrixView
from tests.support import optax_trajectory, trajectory

P = PartitionSpec
INF = math.inf
SHAPES = {"w": (4, 6), "b": (3,), "k": (2, 2, 1, 3)}


def problem(steps: int = 7, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gradients above the norm at which they are clipped and below it."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.02, 2.0, steps)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return params, {name: np.stack([size * rng.normal(size=shape) for size in sizes]) for name, shape in SHAPES.items()}


# The authors' boxes.


def newton_schulz(x: np.ndarray, eps: float) -> np.ndarray:
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(5):
        r = x @ x.T
        x = 3.4445 * x + (-4.7750 * r + 2.0315 * r @ r) @ x
    return x


def transcribed(
    p: np.ndarray,
    gradients: np.ndarray,
    previous_grads: np.ndarray | None,
    lr: float,
    *,
    variant: str = "adamw",
    b1: float = 0.95,
    b2: float = 0.99,
    eps: float = 1e-8,
    gamma: float = 0.025,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    clip_norm: float = 1.0,
    optimize_1d: bool = False,
    learning_rate_1d: float = 3e-3,
    b1_1d: float = 0.9,
    b2_1d: float = 0.95,
    weight_decay_1d: float = 0.1,
    first_correction: bool = True,
) -> list[np.ndarray]:
    is_mars, is_matrix = optimize_1d or p.ndim == 2, p.ndim == 2
    if not is_mars:
        lr, b1, b2, weight_decay = learning_rate_1d, b1_1d, b2_1d, weight_decay_1d
    m, v, v_max, last = (np.zeros_like(p) for _ in range(4))
    path = []
    for t, g in enumerate(gradients, start=1):
        c = g
        if is_mars:
            before = last if previous_grads is None else previous_grads[t - 1]
            before = g if t == 1 and not first_correction else before
            c = g + gamma * b1 / (1 - b1) * (g - before)
            if np.linalg.norm(c) > clip_norm:
                c = c * clip_norm / np.linalg.norm(c)
        m = b1 * m + (1 - b1) * c
        v = b2 * v + (1 - b2) * c * c
        v_max = np.maximum(v_max, v)
        if is_mars and variant == "lion":
            d = np.sign(m)
        elif is_mars and variant == "shampoo" and is_matrix:
            fan_in, fan_out = p.shape
            d = max(1, fan_out / fan_in) ** 0.5 * newton_schulz(m / (1 - b1), eps)
        else:
            d = m / ((1 - b1**t) * (np.sqrt(v_max if amsgrad else v) / np.sqrt(1 - b2**t) + eps))
        p = p - lr * (d + weight_decay * p)
        path.append(p)
        last = g
    return path


OTHERS = {"learning_rate_1d": 0.02, "b1_1d": 0.8, "b2_1d": 0.9, "weight_decay_1d": 0.3}


BOXES = [
    {"variant": "adamw", "weight_decay": 0.2, **OTHERS},
    {"variant": "adamw", "optimize_1d": True, "amsgrad": True, "b2": 0.5, "eps": 1e-2},
    {"variant": "lion", "amsgrad": True, "b1": 0.6, "clip_norm": 0.5, **OTHERS},
    {"variant": "lion", "optimize_1d": True, "first_correction": False, "gamma": 0.7},
    {"variant": "shampoo", "first_correction": False, "clip_norm": INF, "weight_decay": 0.2},
    {"variant": "shampoo", "optimize_1d": True, "amsgrad": True, "b2": 0.5, "eps": 1e-2},
]


@pytest.mark.parametrize(
    ("flags", "exact"), [*((flags, False) for flags in BOXES), *((BOXES[i], True) for i in (1, 2, 4))]
)
def test_follows_the_boxes(flags: dict[str, Any], exact: bool) -> None:
    params, gradients = problem()
    _, others = problem(seed=1)
    extra = {"previous_grads": others} if exact else {}
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.mars(0.01, **flags), params, gradients, **extra)
    for name, p in params.items():
        theirs = transcribed(p, gradients[name], others[name] if exact else None, 0.01, **flags)
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-9, atol=1e-11)


def test_without_correction_and_clipping_it_is_adamw() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        tx = zoo.mars(0.01, gamma=0.0, clip_norm=INF, weight_decay=0.1, optimize_1d=True)
        ours, _ = trajectory(tx, params, gradients)
        theirs = optax_trajectory(optax.adamw(0.01, b1=0.95, b2=0.99, weight_decay=0.1), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), ours, theirs)


def test_an_infinite_bound_that_is_traced_does_not_clip_either() -> None:
    g = jnp.array([3.0, 4.0])

    def average(clip_norm: Any) -> Array:
        tx = zoo.scale_by_mars(clip_norm=clip_norm)
        return tx.update(g, tx.init(g))[1].m

    np.testing.assert_allclose(jax.jit(average)(jnp.float32(INF)), average(INF), rtol=1e-6)


# The direction.


def test_lion_is_the_sign_of_the_average() -> None:
    g = jnp.array([[0.0, 2.0, -1e-6], [0.0, -3.0, 1e3]])
    tx = zoo.scale_by_mars(variant="lion")
    first, state = tx.update(g, tx.init(g))
    second, after = tx.update(-0.1 * g, state)
    np.testing.assert_array_equal(first, np.sign(g))
    np.testing.assert_array_equal(second, np.sign(after.m))
    assert set(np.unique(second)) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(("shape", "factor"), [((8, 32), 2.0), ((32, 8), 1.0)])
def test_shampoo_is_nearly_orthogonal_and_as_large_as_muon(shape: tuple[int, int], factor: float) -> None:
    g = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tx = zoo.scale_by_mars(variant="shampoo")
    u = jax.jit(lambda g: tx.update(g, tx.init(g))[0])(g)
    s = np.linalg.svd(np.asarray(u), compute_uv=False)
    assert s.min() > 0.68 * factor and s.max() < 1.135 * factor


def test_every_leaf_is_clipped_by_its_own_norm() -> None:
    g = {"large": jnp.full((3, 4), 5.0), "small": jnp.full((2, 2), 0.01)}
    tx = zoo.scale_by_mars(gamma=0.0, clip_norm=0.5, variant="lion")
    _, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(np.linalg.norm(state.m["large"]), 0.05 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.m["small"], 0.05 * g["small"], rtol=1e-6)


@pytest.mark.parametrize(("first_correction", "factor"), [(True, 1 + 0.025 * 0.95 / 0.05), (False, 1.0)])
def test_the_first_correction(first_correction: bool, factor: float) -> None:
    g = jnp.array([0.1, -0.2])
    tx = zoo.scale_by_mars(first_correction=first_correction, variant="lion")
    np.testing.assert_allclose(tx.update(g, tx.init(g))[1].m, 0.05 * factor * g, rtol=1e-5)


def test_amsgrad_remembers_a_large_gradient() -> None:
    gradients = jnp.array([1.0] + [0.01] * 200)

    def last(**flags: Any) -> Array:
        tx = zoo.scale_by_mars(b2=0.9, gamma=0.0, **flags)

        def step(state: Any, g: Array) -> tuple[Any, Array]:
            u, state = tx.update(g, state)
            return state, u

        return jax.lax.scan(step, tx.init(gradients[0]), gradients)[1][-1]

    np.testing.assert_allclose(last(), 1.0, rtol=1e-3)
    np.testing.assert_allclose(last(amsgrad=True), 0.01 / math.sqrt(0.1), rtol=1e-3)


def test_mu_dtype_is_that_of_the_averages_alone() -> None:
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = zoo.mars(0.1, mu_dtype="bfloat16").init(params)
    dtypes = {jax.tree_util.keystr(path).split(".")[-1]: leaf.dtype for path, leaf in jax.tree.leaves_with_path(state)}
    assert dtypes["m['w']"] == dtypes["m['b']"] == jnp.bfloat16
    assert dtypes["v['w']"] == dtypes["v['b']"] == dtypes["previous['w']"] == jnp.float32


# Who goes where, at which rate.


@pytest.mark.parametrize(
    ("arguments", "matrices"),
    [
        ({}, {"w"}),
        ({"dimension_numbers": MatrixView(1, 0)}, {"w"}),
        ({"dimension_numbers": lambda path, leaf: MatrixView((0, 1, 2), 3) if path == "k" else None},
         {"w", "k"}),
        ({"dimension_numbers": {"w": None, "b": None, "k": MatrixView(2, 3, (0, 1))}},
         {"w", "k"}),
    ],
)  # fmt: skip
def test_who_is_a_matrix(arguments: Any, matrices: set[str]) -> None:
    params, _ = problem()
    state = zoo.mars(0.1, variant="shampoo", **arguments).init(params)
    m = state.inner_states["matrix"].inner_state[0].m
    assert {name for name, leaf in m.items() if not isinstance(leaf, optax.MaskedNode)} == matrices


def test_a_kernel_with_a_view_is_orthogonalized_as_one() -> None:
    view = MatrixView((0, 1, 2), 3)
    tx = zoo.mars(1.0, variant="shampoo", dimension_numbers={"k": view})
    g = {"k": jax.random.normal(jax.random.key(0), (2, 2, 1, 3))}
    updates, _ = jax.jit(lambda g: tx.update(g, tx.init(g), g))(g)
    expected = zoo.orthogonalize(g["k"].reshape(4, 3), eps=1e-8)
    np.testing.assert_allclose(updates["k"].reshape(4, 3), -expected, atol=1e-5)


def sizes(tx: optax.GradientTransformation, steps: int = 3) -> np.ndarray:
    """The size of each step of the bias, whose gradient is constant: AdamW's learning rate."""
    params = {"b": jnp.zeros(2)}
    gradients = {"b": jnp.ones((steps, 2))}
    path, _ = trajectory(tx, params, gradients)
    return -np.diff(path["b"][:, 0], prepend=0.0)


# Inside shard_map.


@pytest.mark.parametrize(("variant", "check_vma"), [("adamw", False), ("shampoo", False), ("shampoo", True)])
def test_sharded_leaves_equal_the_single_device(variant: Any, check_vma: bool) -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    specs, params = {"w": P("a", "b")}, {"w": np.random.default_rng(0).normal(size=(4, 8))}
    tx = zoo.scale_by_mars(variant=variant)

    def step(p: Any) -> Any:
        u, state = tx.update(p, tx.init(p), param_specs=specs)
        return u, state.m

    with jax.enable_x64(True):
        sharded = jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=(specs, specs), check_vma=check_vma)
        ours, single = jax.jit(sharded)(params), jax.jit(step)(params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), ours, single)


# The exact form.


def quadratic(params: Any, batch: Any) -> Array:
    pulled = jax.tree.map(lambda p, c: jnp.sum((1 + 0.3 * jnp.cos(c)) * jnp.square(p - c)), params, batch)
    return sum(jax.tree.leaves(pulled), start=jnp.zeros(()))


def test_the_same_gradient_twice_is_not_corrected() -> None:
    g = jnp.array([[0.3, -0.2]])
    tx = zoo.scale_by_mars(gamma=0.5)
    np.testing.assert_allclose(tx.update(g, tx.init(g), previous_grads=g)[1].m, 0.05 * g, rtol=1e-5)


def test_a_constant_batch_at_unmoved_parameters_is_not_corrected() -> None:
    batch = {"w": jnp.array([[0.3, -0.2]])}
    tx = zoo.scale_by_mars(gamma=0.9, clip_norm=INF, exact=True, first_correction=False)

    @jax.jit
    def averaged(params: Any) -> tuple[Any, Any]:
        given = zoo.closures(quadratic, params, batch)
        state = tx.init(params)
        for _ in range(3):
            _, state = tx.update(given["grad"], state, params, **given)
        return given["grad"]["w"], state.inner.m["w"]

    g, m = averaged({"w": jnp.array([[1.0, 2.0]])})
    np.testing.assert_allclose(m, (1 - 0.95**3) * g, rtol=1e-5)


@pytest.mark.parametrize(("variant", "first_correction"), [("adamw", True), ("lion", False), ("shampoo", False)])
def test_exact_equals_previous_grads_by_hand(variant: Any, first_correction: bool) -> None:
    start, batches = problem(steps=5)
    make = functools.partial(zoo.mars, 0.05, variant=variant, gamma=0.5, first_correction=first_correction)
    tx, by_hand = make(exact=True), make()

    def alone(carry: Any, batch: Any) -> Any:
        params, state, _ = zoo.train_step(quadratic, tx)(*carry, batch)
        return (params, state), params

    def with_two_gradients(carry: Any, batch: Any) -> Any:
        params, state, previous, t = carry
        before = jax.grad(quadratic)(previous, batch)
        if first_correction:
            before = jax.tree.map(lambda g: jnp.where(t == 0, jnp.zeros_like(g), g), before)
        updates, state = by_hand.update(jax.grad(quadratic)(params, batch), state, params, previous_grads=before)
        moved = optax.apply_updates(params, updates)
        return (moved, state, params, t + 1), moved

    @jax.jit
    def run() -> Any:
        own, handed = (start, tx.init(start)), (start, by_hand.init(start), start, 0)
        return jax.lax.scan(alone, own, batches)[1], jax.lax.scan(with_two_gradients, handed, batches)[1]

    with jax.enable_x64(True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8), *run())


def test_exact_keeps_parameters_in_the_place_of_gradients() -> None:
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3)}
    keeps, exact = (jax.eval_shape(zoo.mars(exact=exact).init, params) for exact in (False, True))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), exact.previous_params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert keeps.inner_states["matrix"].inner_state[0].previous["w"].shape == (2, 3)
    assert exact.inner.inner_states["matrix"].inner_state[0].previous is None


def test_exact_does_with_passed_gradients() -> None:
    g = jnp.array([[0.3, -0.2]])
    tx, plain = zoo.scale_by_mars(gamma=0.5, exact=True), zoo.scale_by_mars(gamma=0.5)
    ours, state = tx.update(g, tx.init(g), g, previous_grads=0.5 * g)
    np.testing.assert_array_equal(ours, plain.update(g, plain.init(g), previous_grads=0.5 * g)[0])
    with pytest.raises(ValueError, match=r"^mars: needs grad_fn; call update\(grads, state, params, grad_fn=...\)"):
        tx.update(g, state, g)


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
        ({"gamma": -1.0}, r"gamma must be in \[0, inf\), got -1.0"),
        ({"clip_norm": 0.0}, r"clip_norm must be in \(0, inf\], got 0.0"),
        ({"variant": "lio"}, r"variant must be one of 'adamw', 'lion', 'shampoo', got 'lio'; did you mean 'lion'\?"),
        ({"b1_1d": 1.0}, r"b1_1d must be in \[0, 1\), got 1.0"),
        ({"b2_1d": 1.0, "optimize_1d": True}, r"b2_1d must be in \[0, 1\), got 1.0"),
        ({"base_learning_rate": 0.0}, r"base_learning_rate must be in \(0, inf\), got 0.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^mars: {sentence}"):
        zoo.mars(**arguments)


def test_a_leaf_that_is_no_matrix_is_named() -> None:
    with pytest.raises(ValueError, match=r"^mars: the leaf at \['b'\] of shape \(3,\) is not a matrix"):
        zoo.scale_by_mars(variant="shampoo").init({"b": jnp.ones(3)})


def test_previous_grads_of_another_shape_are_named() -> None:
    tx = zoo.scale_by_mars()
    g = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"^mars: at \['w'\] .*previous_grads has shape \(3, 2\)"):
        tx.update(g, tx.init(g), previous_grads={"w": jnp.ones((3, 2))})
