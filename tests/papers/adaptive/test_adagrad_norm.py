"""AdaGrad-Norm: AdaGrad of one number, its three granularities, momentum, and steps that no rate can spoil."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from tests.support import problem, trajectory

AXES = {
    "global": {"w": (0, 1), "b": (0,)},
    "tensor": {"w": (0, 1), "b": (0,)},
    "axis": {"w": (0,), "b": ()},
}
"""Over which axes of the leaves of `problem` entries share a step size, the channels last."""


def line_by_line(p: Any, gradients: Any, squares: Any, momentum: float = 0.0) -> np.ndarray:
    """The box for one leaf; `squares` are the sums of each step's squares."""
    acc, buf, path = 0.3, 0.0, []
    for g, squared in zip(gradients, squares, strict=True):
        acc = acc + squared
        buf = momentum * buf + (1 - momentum) * g
        p = p - 0.7 * buf / (np.sqrt(acc) + 0.01)
        path.append(p)
    return np.stack(path)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("granularity", AXES)
def test_line_by_line(granularity: str, momentum: float) -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        tx = zoo.adagrad_norm(0.7, 0.3, 0.01, momentum, granularity)
        ours, _ = trajectory(tx, params, gradients)
    squares = {
        name: [np.sum(g * g, AXES[granularity][name], keepdims=True) for g in gradients[name]] for name in params
    }
    if granularity == "global":
        both = [np.sum(w) + np.sum(b) for w, b in zip(squares["w"], squares["b"], strict=True)]
        squares = {"w": both, "b": both}
    for name, p in params.items():
        expected = line_by_line(p, gradients[name], squares[name], momentum)
        np.testing.assert_allclose(ours[name], expected, rtol=1e-11)


def test_one_parameter_is_adagrad_with_eps_outside_the_root() -> None:
    rng = np.random.default_rng(0)
    p, gradients = rng.normal(size=()), rng.normal(size=20)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adagrad_norm(0.5, 0.1, eps=0.0), p, gradients)
        theirs, _ = trajectory(optax.adagrad(0.5, 0.1, eps=0.0), p, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)


@pytest.mark.parametrize("granularity", AXES)
def test_the_first_step_from_nothing_is_as_long_as_the_rate(granularity: str) -> None:
    params, gradients = problem(steps=1)
    ours, _ = trajectory(zoo.adagrad_norm(0.25, 0.0, granularity=granularity), params, gradients)
    moved = {name: ours[name][0] - p for name, p in params.items()}
    if granularity == "global":
        np.testing.assert_allclose(np.sqrt(sum(np.sum(x * x) for x in moved.values())), 0.25, rtol=1e-5)
    else:
        for name, x in moved.items():
            np.testing.assert_allclose(np.sqrt(np.sum(x * x, AXES[granularity][name])), 0.25, rtol=1e-5)


def test_state_holds_a_number_for_each_step_size() -> None:
    params = {"kernel": jnp.ones((3, 3, 2, 5)), "bias": jnp.ones(5), "scale": jnp.ones(())}

    def sizes(granularity: str, **settings: Any) -> Any:
        state = zoo.scale_by_adagrad_norm(granularity=granularity, **settings).init(params)
        assert state.buf is None
        return jax.tree.map(jnp.size, state.acc)

    assert sizes("global") == 1
    assert sizes("tensor") == {"kernel": 1, "bias": 1, "scale": 1}
    assert sizes("axis") == {"kernel": 5, "bias": 5, "scale": 1}
    assert sizes("axis", channel_axis={"kernel": 0, "bias": 0, "scale": None}) == {"kernel": 3, "bias": 5, "scale": 1}
    assert sizes("axis", channel_axis=None) == {"kernel": 1, "bias": 5, "scale": 1}


def test_half_precision_gradients_are_summed_in_float32() -> None:
    g = {"w": jnp.full((64, 64), 200.0, jnp.float16)}
    for granularity in AXES:
        tx = zoo.scale_by_adagrad_norm(granularity=granularity)
        u, state = tx.update(g, tx.init(g))
        assert jax.tree.leaves(state.acc)[0].dtype == jnp.float32
        expected = 1 / (8 if granularity == "axis" else 64)
        np.testing.assert_allclose(np.asarray(u["w"], np.float32), expected, rtol=1e-3)


def test_complex_leaves_count_with_both_parts() -> None:
    g = np.array([[3 + 4j, 0], [0, 12]], np.complex64)
    tx = zoo.scale_by_adagrad_norm(0.0)
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], g / 13, rtol=1e-6)
    tx = zoo.scale_by_adagrad_norm(0.0, granularity="axis")
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], g / np.float32([[5, 12]]), rtol=1e-6)


@pytest.mark.parametrize("granularity", AXES)
def test_inside_shard_map_whichever_axis_is_cut(granularity: str) -> None:
    specs = {"rows": PartitionSpec("x"), "columns": PartitionSpec(None, ("x", "y")), "b": PartitionSpec("y")}
    rng = np.random.default_rng(0)
    grads = {name: rng.normal(size=(8,) if name == "b" else (4, 8)).astype(np.float32) for name in specs}
    tx = zoo.scale_by_adagrad_norm(granularity=granularity)

    def two_steps(g: Any, **extra: Any) -> Any:
        _, state = tx.update(g, tx.init(g), **extra)
        return tx.update(jax.tree.map(lambda x: 2 * x, g), state, **extra)[0]

    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    over_devices = jax.shard_map(
        lambda g: two_steps(g, param_specs=specs), mesh=mesh, in_specs=(specs,), out_specs=specs
    )
    whole = jax.jit(two_steps)(grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.jit(over_devices)(grads), whole)


def test_a_block_without_its_spec_is_refused_where_slices_are_summed() -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("x")

    def run(granularity: str) -> Any:
        tx = zoo.scale_by_adagrad_norm(granularity=granularity)
        step = jax.shard_map(lambda g: tx.update(g, tx.init(g))[0], mesh=mesh, in_specs=spec, out_specs=spec)
        return step(jnp.ones((8, 3)))

    with pytest.raises(ValueError, match=r"adagrad_norm: a leaf of shape \(2, 3\) is one device's block .*param_specs"):
        run("axis")
    np.testing.assert_allclose(run("tensor"), run("global"))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adagrad_norm: granularity must be one of .*, got 'leaf'"):
        zoo.adagrad_norm(granularity="leaf")
    with pytest.raises(ValueError, match=r"adagrad_norm: initial_accumulator_value must be in \[0, inf\), got -1"):
        zoo.adagrad_norm(1.0, -1)
    with pytest.raises(ValueError, match=r"adagrad_norm: momentum must be in \[0, 1\), got 1.0"):
        zoo.adagrad_norm(1.0, momentum=1.0)


def test_no_rate_and_no_start_make_it_diverge_where_sgd_does() -> None:
    """The papers' claim: whatever b0 and eta, the loss falls; SGD must know the smoothness L and stay below 2 / L."""
    curvature = jnp.asarray(np.geomspace(1.0, 100.0, 8), jnp.float32)

    def losses(tx: optax.GradientTransformation) -> jax.Array:
        def step(carry: Any, _: None) -> Any:
            x, state = carry
            u, state = tx.update(curvature * x, state, x)
            return (x + u, state), 0.5 * jnp.sum(curvature * (x + u) ** 2)

        start = jnp.ones(8)
        return jax.lax.scan(step, (start, tx.init(start)), None, length=3000)[1]

    start = float(0.5 * jnp.sum(curvature))
    for eta in (0.1, 1.0, 10.0):
        for b0 in (1e-3, 1.0, 1e2):
            walked = losses(zoo.adagrad_norm(eta, b0**2))
            assert walked[-1] < 0.1 * start, (eta, b0)
        assert not losses(optax.sgd(eta))[-1] < start
