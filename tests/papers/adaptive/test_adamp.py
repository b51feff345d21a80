"""AdamP and SGDP: the boxes line by line, what the projection takes away, sharded leaves, and the growth of weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

STEPS = 40
EPS = 1e-8


def kernel_problem(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A convolution's kernel, (height, width, in, out), and a bias; every third gradient is upright on the kernel."""
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(size=(2, 2, 5, 3)), "bias": rng.normal(size=3)}
    gradients = {name: rng.normal(size=(STEPS, *p.shape)) for name, p in params.items()}
    p = params["kernel"]
    for t in range(0, STEPS, 3):
        axes = (0, 1, 2) if t % 2 else (0, 1, 2, 3)
        g = gradients["kernel"][t]
        g -= p * np.sum(p * g, axes, keepdims=True) / np.sum(p * p, axes, keepdims=True)
    return params, gradients


def project(u: np.ndarray, g: np.ndarray, p: np.ndarray, delta: float, wd_ratio: float) -> tuple[np.ndarray, float]:
    """The projection on the channels of the last axis, else on the whole leaf."""
    if p.ndim < 2:
        return u, 1.0
    channels, layer = (-1, p.shape[-1]), (-1, 1)
    for shape in (channels, layer):
        rows_p, rows_g, rows_u = (x.reshape(shape).T for x in (p, g, u))
        lengths = [np.maximum(np.linalg.norm(rows, axis=1), EPS) for rows in (rows_p, rows_g)]
        cosines = np.abs(np.sum(rows_p * rows_g, 1)) / (lengths[0] * lengths[1])
        if np.max(cosines) < delta / np.sqrt(rows_p.shape[1]):
            n = rows_p / (np.linalg.norm(rows_p, axis=1, keepdims=True) + EPS)
            projected = rows_u - n * np.sum(n * rows_u, 1, keepdims=True)
            return projected.T.reshape(p.shape), wd_ratio
    return u, 1.0


def adamp_in_numpy(p: Any, gradients: Any, lr: float, weight_decay: float, nesterov: bool, **projection: float) -> Any:
    b1, b2 = 0.8, 0.99
    m, v, path, ratios = 0.0, 0.0, [], set()
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        u = (b1 * m + (1 - b1) * g if nesterov else m) / (np.sqrt(v / (1 - b2**t)) + EPS)
        u, ratio = project(u, g, p, **projection)
        p = p - lr * weight_decay * ratio * p - lr * u / (1 - b1**t)
        path.append(p)
        ratios.add(ratio)
    return np.stack(path), ratios


def sgdp_in_numpy(
    p: Any,
    gradients: Any,
    lr: float,
    weight_decay: float,
    nesterov: bool,
    dampening: float,
    project_buffer: bool,
    **projection: float,
) -> Any:
    momentum = 0.7
    buf, path, ratios = 0.0, [], set()
    for g in gradients:
        buf = momentum * buf + (1 - dampening) * g
        u, ratio = project(g + momentum * buf if nesterov else buf, g, p, **projection)
        buf = u if project_buffer and not nesterov else buf
        p = p - lr * weight_decay * ratio / (1 - momentum) * p - lr * u
        path.append(p)
        ratios.add(ratio)
    return np.stack(path), ratios


def channels_first(tree: dict[str, np.ndarray], lead: int = 0) -> dict[str, np.ndarray]:
    return {name: np.moveaxis(x, -1, lead) if x.ndim - lead > 1 else x for name, x in tree.items()}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_adamp_line_by_line(nesterov: bool, first: bool) -> None:
    params, gradients = kernel_problem()
    settings = {"weight_decay": 0.1, "nesterov": nesterov, "delta": 0.6, "wd_ratio": 0.3}
    with jax.enable_x64(True):
        if first:
            tx = zoo.adamp(0.02, 0.8, 0.99, channel_axis=0, **settings)
            ours, _ = trajectory(tx, channels_first(params), channels_first(gradients, 1))
            ours = {name: np.moveaxis(x, 1, -1) if x.ndim > 2 else x for name, x in ours.items()}
        else:
            ours, _ = trajectory(zoo.adamp(0.02, 0.8, 0.99, **settings), params, gradients)
    for name, p in params.items():
        expected, ratios = adamp_in_numpy(p, gradients[name], 0.02, **settings)
        assert ratios == ({0.3, 1.0} if name == "kernel" else {1.0})
        np.testing.assert_allclose(ours[name], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("project_buffer", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdp_line_by_line(nesterov: bool, project_buffer: bool) -> None:
    params, gradients = kernel_problem()
    settings = {"weight_decay": 0.1, "nesterov": nesterov, "delta": 0.6, "wd_ratio": 0.3}
    settings |= {"dampening": 0.2, "project_buffer": project_buffer}
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.sgdp(0.02, 0.7, **settings), params, gradients)
    for name, p in params.items():
        expected, ratios = sgdp_in_numpy(p, gradients[name], 0.02, **settings)
        assert ratios == ({0.3, 1.0} if name == "kernel" else {1.0})
        np.testing.assert_allclose(ours[name], expected, rtol=1e-10, atol=1e-12)


def test_delta_0_is_adamw_and_sgd() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adamp(0.01, weight_decay=0.1, delta=0.0), params, gradients)
        theirs = optax_trajectory(optax.adamw(0.01, weight_decay=0.1), params, gradients)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, theirs)
        for nesterov in (False, True):
            tx = zoo.sgdp(0.01, 0.9, nesterov=nesterov, delta=0.0)
            theirs = optax_trajectory(optax.sgd(0.01, 0.9, nesterov), params, gradients)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), trajectory(tx, *problem())[0], theirs
            )


def direction(p: Any, g: Any, **settings: Any) -> Any:
    tx = zoo.scale_by_adamp(**settings)
    return jax.tree.map(np.asarray, tx.update(g, tx.init(p), p)[0])


def radial(p: Any, u: Any, axes: Any) -> Any:
    """The cosine between weights and update."""
    return (p * u).sum(axes) / ((p * p).sum(axes) * (u * u).sum(axes)) ** 0.5


def upright_matrix(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and a gradient that stands upright on each of its columns."""
    rng = np.random.default_rng(seed)
    p, g = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    return p, g - p * np.sum(p * g, 0) / np.sum(p * p, 0)


def test_upright_channels_lose_the_radial_part_of_their_update() -> None:
    p, g = upright_matrix()
    assert np.all(np.abs(radial(p, direction(p, g, delta=0.0), 0)) > 1e-2), "Adam's update is not upright"
    np.testing.assert_allclose(radial(p, direction(p, g), 0), 0, atol=1e-6)


def test_one_slanting_channel_spares_all_channels_but_not_the_layer() -> None:
    p, g = upright_matrix()
    g[:, 2] += p[:, 2]
    assert np.all(direction(p, g) == direction(p, g, delta=0.0))
    g[:, 1] -= p[:, 1] * np.sum(p[:, 2] ** 2) / np.sum(p[:, 1] ** 2)
    u = direction(p, g)
    np.testing.assert_allclose(radial(p, u, None), 0, atol=1e-6)
    assert np.max(np.abs(radial(p, u, 0))) > 0.1


def test_the_channel_axis_may_differ_between_leaves() -> None:
    p, g = upright_matrix()
    params, grads = ({"layer": x, "last": x, "first": x.T} for x in (p, g))
    for axes in ({"layer": None, "last": -1, "first": 0}, lambda path, _: {"layer": None, "last": 1, "first": 0}[path]):
        u = direction(params, grads, channel_axis=axes)
        np.testing.assert_allclose(radial(p, u["layer"], None), 0, atol=1e-6)
        assert np.max(np.abs(radial(p, u["layer"], 0))) > 0.1
        np.testing.assert_allclose(radial(p, u["last"], 0), 0, atol=1e-6)
        np.testing.assert_allclose(u["first"], u["last"].T, rtol=1e-5)


def test_a_gradient_of_zero_counts_as_upright() -> None:
    p = np.ones((3, 2), np.float32)
    decay = {"weight_decay": 0.5, "wd_ratio": 0.2}
    np.testing.assert_allclose(direction(p, np.zeros_like(p), **decay), 0.1 * p, rtol=1e-6)
    np.testing.assert_allclose(direction(p[0], np.zeros_like(p[0]), **decay), 0.5 * p[0], rtol=1e-6)


def test_weights_of_zero_and_no_eps_stay_finite() -> None:
    g = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(direction(0 * g, g, eps=0.0), direction(0 * g, g, eps=0.0, delta=0.0))


def test_float32_weights_where_float64_is_enabled() -> None:
    p, g = upright_matrix()
    with jax.enable_x64(True):
        u = direction(p, g, weight_decay=0.1)
    assert u.dtype == np.float32
    np.testing.assert_allclose(u, direction(p, g, weight_decay=0.1), rtol=1e-5)


def test_the_buffer_of_sgdp_is_the_projected_update_or_the_sum_of_gradients() -> None:
    p, g = upright_matrix()
    later = g + np.roll(g, 1, axis=0)

    def buffer(**settings: Any) -> np.ndarray:
        tx = zoo.scale_by_sgdp(0.5, dampening=0.25, delta=100.0, **settings)
        state = tx.init(p)
        for gradient in (g, later):
            _, state = tx.update(gradient, state, p)
        return np.asarray(state.buf)

    total = 0.75 * (0.5 * g + later)
    np.testing.assert_allclose(buffer(project_buffer=False), total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(buffer(nesterov=True), total, rtol=1e-5, atol=1e-6)
    expected = total - p * np.sum(p * total, 0) / np.sum(p * p, 0)
    np.testing.assert_allclose(buffer(), expected, rtol=1e-5, atol=1e-6)


def test_sgdp_without_momentum_keeps_no_buffer() -> None:
    params, gradients = kernel_problem()
    assert zoo.sgdp(0.1).init(params)[0].buf is None
    ours, _ = trajectory(zoo.sgdp(0.01, dampening=0.5), params, gradients)
    traced, _ = trajectory(zoo.sgdp(0.01, jnp.float32(0.0), dampening=0.5), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, traced)


SPECS = [
    PartitionSpec("x"),
    PartitionSpec(None, "y"),
    PartitionSpec(None, None, "x", "y"),
    PartitionSpec(None, None, None, ("y", "x")),
]


@pytest.mark.parametrize("channel_axis", [-1, 1, None])
def test_inside_shard_map_whichever_axis_is_cut(channel_axis: int | None) -> None:
    rng = np.random.default_rng(0)
    p, g = (rng.normal(size=(4, 2, 4, 8)).astype(np.float32) for _ in range(2))
    axes = tuple(axis for axis in range(4) if channel_axis is None or axis != channel_axis % 4)
    upright = g - p * np.sum(p * g, axes, keepdims=True) / np.sum(p * p, axes, keepdims=True)
    layer = g - p * np.sum(p * g) / np.sum(p * p)
    specs = {str(spec): spec for spec in SPECS}
    params = dict.fromkeys(specs, p)
    tx = zoo.scale_by_adamp(weight_decay=0.1, channel_axis=channel_axis)

    def step(g: Any, p: Any, **extra: Any) -> Any:
        return tx.update(g, tx.init(p), p, **extra)[0]

    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    blocks = jax.shard_map(
        lambda g, p: step(g, p, param_specs=specs), mesh=mesh, in_specs=(specs, specs), out_specs=specs
    )
    over_devices, whole, spared = jax.jit(blocks), jax.jit(step), zoo.scale_by_adamp(weight_decay=0.1, delta=0.0)
    for gradient, is_projected in ((g, False), (upright, True), (layer, True)):
        u = whole(gradient, p)
        plain, _ = spared.update(gradient, spared.init(p), p)
        assert np.allclose(u, plain, rtol=1e-4) != is_projected
        for block in over_devices(dict.fromkeys(specs, gradient), params).values():
            np.testing.assert_allclose(block, u, rtol=1e-4, atol=1e-6)


def test_a_block_without_its_spec_is_refused() -> None:
    tx = zoo.scale_by_adamp()
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("x")
    run = jax.shard_map(lambda p: tx.update(p, tx.init(p), p)[0], mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(ValueError, match=r"adamp: a leaf of shape \(2, 3\) is one device's block .*param_specs"):
        run(jnp.ones((8, 3)))


def test_what_makes_no_sense_is_refused() -> None:
    for make in (zoo.adamp, zoo.sgdp):
        name = make.__name__
        with pytest.raises(ValueError, match=rf"{name}: delta must be in \[0, inf\), got -0.1"):
            make(1e-3, delta=-0.1)
        with pytest.raises(TypeError, match=rf"{name}: the gradient at \['w'\] is complex"):
            tx = make(1e-3)
            w = {"w": jnp.ones((2, 2), jnp.complex64)}
            tx.update(w, zoo.adamp(1e-3).init({"w": jnp.ones((2, 2))}), w)
        with pytest.raises(ValueError, match=rf"{name}: channel_axis of the leaf at \['w'\] of shape \(2, 2\) must be"):
            tx = make(1e-3, channel_axis=2)
            w = {"w": jnp.ones((2, 2))}
            tx.update(w, tx.init(w), w)


def growth(tx: optax.GradientTransformation) -> tuple[float, float]:
    """By how much the weights of a layer with weight normalisation grow, and the loss they end at; from -1 to 1."""
    rng = np.random.default_rng(0)
    start, target = (jnp.asarray(rng.normal(size=(32, 4)), jnp.float32) for _ in range(2))
    noise = jnp.asarray(rng.normal(size=(300, 32, 4)), jnp.float32)

    def loss(w: jax.Array, target: jax.Array) -> jax.Array:
        return -jnp.mean(radial(w, target, 0))

    def step(carry: Any, noise: jax.Array) -> Any:
        w, state = carry
        u, state = tx.update(jax.grad(loss)(w, target + 2 * noise), state, w)
        return (optax.apply_updates(w, u), state), None

    w = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), noise)[0][0])(start)
    return float(jnp.linalg.norm(w) / jnp.linalg.norm(start)) - 1, float(loss(w, target))


@pytest.mark.parametrize(
    ("plain", "projected"),
    [
        (optax.sgd(0.3, 0.9), zoo.sgdp(0.3, 0.9)),
        (optax.sgd(0.3, 0.9), zoo.sgdp(0.3, 0.9, project_buffer=False)),
        (optax.adam(0.03), zoo.adamp(0.03)),
    ],
    ids=["sgdp", "sgdp, own buffer", "adamp"],
)
def test_scale_invariant_weights_grow_much_less(plain: Any, projected: Any) -> None:
    with jax.numpy_dtype_promotion("standard"):
        grown, loss = growth(plain)
    kept, projected_loss = growth(projected)
    assert kept < 0.2 * grown
    assert projected_loss < -0.9 and abs(projected_loss - loss) < 0.02
