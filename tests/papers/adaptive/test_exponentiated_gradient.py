"""Exponentiated gradients: factors keep signs, the plus-minus form moves as asinh, sums of groups stay."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import optax_zoo as zoo
from tests.laws.harness import matrix_mesh
from tests.support import problem, trajectory

BASES = [
    {"base": "sgd"},
    {"base": "sgd", "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    {"base": "sgd", "momentum": 0.9, "nesterov": True},
    {"base": "adamw", "amsgrad": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("arguments", BASES)
def test_no_weight_changes_its_sign(arguments: dict, dtype: str) -> None:
    params, gradients = problem(steps=12)
    with jax.enable_x64(dtype == "float64"):
        params, gradients = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, gradients))
        ours, _ = trajectory(zoo.exponentiated_gradient(0.2, **arguments), params, gradients)
    for name, path in ours.items():
        path = path.astype(np.float64)
        np.testing.assert_array_equal(np.sign(path), np.broadcast_to(np.sign(params[name]), path.shape))
        assert np.all(np.isfinite(path))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_no_single_step_kills_a_weight(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params = jnp.array([1.0, -1.0, 0.3, -7.0], dtype)
        tx = zoo.exponentiated_gradient(1.0)
        updates, _ = tx.update(1e4 * jnp.sign(params), tx.init(params), params)
        left = params + updates
        assert jnp.all(jnp.sign(left) == jnp.sign(params)) and jnp.all(jnp.abs(left) < 0.05 * jnp.abs(params))


def test_small_steps_move_in_proportion_to_the_weight() -> None:
    params, gradients = problem(steps=1)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.apply_exponentiated(1e-6), params, gradients)
    for name, path in ours.items():
        expected = -1e-6 * np.abs(params[name]) * gradients[name][0]
        np.testing.assert_allclose(path[0] - params[name], expected, rtol=1e-4)


def test_is_a_chain_of_a_direction_and_the_multiplicative_step() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.exponentiated_gradient(0.1, momentum=0.8), params, gradients)
        chain = optax.chain(optax.trace(0.8), zoo.apply_exponentiated(0.1))
        chained, _ = trajectory(chain, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, chained)


def test_the_first_gradient_is_not_dampened() -> None:
    params, gradients = problem(steps=2)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.exponentiated_gradient(0.1, momentum=0.8, dampening=0.5), params, gradients)
    p, g = params["w"], gradients["w"]
    first = p * np.exp(-0.1 * np.sign(p) * g[0])
    second = first * np.exp(-0.1 * np.sign(p) * (0.8 * g[0] + 0.5 * g[1]))
    np.testing.assert_allclose(ours["w"], [first, second], rtol=1e-12)


@pytest.mark.parametrize(("base", "factor"), [("sgd", np.exp(-0.05)), ("adamw", 0.95)])
def test_decay_shrinks_by_a_factor_where_the_mask_says_so(base: str, factor: float) -> None:
    params, gradients = problem(steps=1)
    zero = jax.tree.map(np.zeros_like, gradients)
    tx = zoo.exponentiated_gradient(0.1, base=base, weight_decay=0.5, mask={"w": True, "b": False})
    ours, _ = trajectory(tx, params, zero)
    np.testing.assert_allclose(ours["w"][0], factor * params["w"], rtol=1e-6)
    np.testing.assert_array_equal(ours["b"][0], params["b"].astype(np.float32))


def test_learns_positive_weights_that_are_relevant_rarely_with_less_loss_than_gradient_descent() -> None:
    """Kivinen and Warmuth: with few relevant among many inputs, multiplicative steps learn faster."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.choice([-1.0, 1.0], size=(100, 200)), jnp.float32)
    target = jnp.zeros(200).at[:3].set(jnp.array([0.5, 0.3, 0.2]))

    def total_loss(tx: optax.GradientTransformation) -> float:
        def step(carry: tuple, x: jax.Array) -> tuple:
            weights, state = carry
            error = x @ (weights - target)
            updates, state = tx.update(error * x, state, weights)
            return (optax.apply_updates(weights, updates), state), jnp.square(error)

        start = jnp.full(200, 1 / 200)
        return float(jnp.sum(jax.lax.scan(step, (start, tx.init(start)), inputs)[1]))

    rates = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    multiplicative = min(total_loss(zoo.apply_exponentiated(rate)) for rate in rates)
    additive = min(total_loss(optax.sgd(rate)) for rate in (1e-4, 3e-4, 1e-3, 2e-3, 5e-3))
    assert multiplicative < 0.5 * additive


def test_plus_minus_is_mirror_descent_on_asinh() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        tx = zoo.exponentiated_gradient_pm(0.1, scale=0.3)
        ours, _ = trajectory(tx, params, gradients)
    for name, path in ours.items():
        mirror = np.arcsinh(params[name] / 0.3) - 0.1 * np.cumsum(gradients[name], axis=0)
        np.testing.assert_allclose(path, 0.3 * np.sinh(mirror), rtol=1e-9, atol=1e-12)


def test_plus_minus_keeps_the_product_of_the_two_weights() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        tx = zoo.exponentiated_gradient_pm(0.1)
        state = tx.init(params)
        for i in range(5):
            _, state = tx.update(jax.tree.map(lambda g, i=i: g[i], gradients), state, params)
    product = state.w_plus["w"] * state.w_minus["w"]
    np.testing.assert_allclose(product, np.full_like(product, 0.25), rtol=1e-12)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)])
def test_plus_minus_rescales_each_group_to_the_total(axis: object) -> None:
    params, gradients = problem()
    params, gradients = {"w": params["w"]}, {"w": gradients["w"]}
    with jax.enable_x64(True):
        tx = zoo.exponentiated_gradient_pm(0.2, total=50.0, axis=axis)
        state = tx.init(params)
        plus, minus = np.asarray(state.w_plus["w"]), np.asarray(state.w_minus["w"])
        np.testing.assert_allclose((plus + minus).sum(axis), 50.0, rtol=1e-12)
        updates, state = tx.update({"w": gradients["w"][0]}, state, params)
        moved = np.asarray(params["w"] + updates["w"])
    plus, minus = plus * np.exp(-0.2 * gradients["w"][0]), minus * np.exp(0.2 * gradients["w"][0])
    rescale = 50.0 / (plus + minus).sum(axis, keepdims=True)
    np.testing.assert_allclose(state.w_plus["w"], rescale * plus, rtol=1e-12)
    np.testing.assert_allclose(state.w_minus["w"], rescale * minus, rtol=1e-12)
    np.testing.assert_allclose(moved, rescale * (plus - minus), rtol=1e-9)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_plus_minus_groups_across_devices(axis: int | None) -> None:
    rng = np.random.default_rng(0)
    params, gradient = (jnp.asarray(rng.normal(size=(8, 3)), jnp.float32) for _ in range(2))
    tx = zoo.exponentiated_gradient_pm(0.2, total=100.0, axis=axis)
    state = tx.init(params)
    rows = PartitionSpec("data")
    specs = jax.tree.map(lambda leaf: rows if leaf.shape == (8, 3) else PartitionSpec(), state)
    sharded = jax.jit(
        jax.shard_map(
            lambda g, s, p: tx.update(g, s, p, param_specs=rows),
            mesh=matrix_mesh(),
            in_specs=(rows, specs, rows),
            out_specs=(rows, specs),
        )
    )
    np.testing.assert_allclose(
        sharded(gradient, state, params)[0], tx.update(gradient, state, params)[0], rtol=1e-5, atol=1e-6
    )


def test_a_weight_at_zero_moves_only_in_the_plus_minus_form() -> None:
    zero, gradient = jnp.zeros(3), jnp.ones(3)
    for tx, moves in ((zoo.exponentiated_gradient(0.1), False), (zoo.exponentiated_gradient_pm(0.1), True)):
        updates, _ = tx.update(gradient, tx.init(zero), zero)
        assert bool(jnp.all(updates != 0)) is moves


def test_huge_gradients_stay_finite() -> None:
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    for tx in (zoo.exponentiated_gradient(1.0), zoo.exponentiated_gradient_pm(1.0)):
        updates, state = tx.update({"w": jnp.array([1e30, 1e30, -1e30])}, tx.init(params), params)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((updates, state)))


def test_bad_input_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"exponentiated_gradient: base must be one of 'sgd', 'adamw', got 'adam'; did"
    ):
        zoo.exponentiated_gradient(0.1, base="adam")
    with pytest.raises(ValueError, match=r"exponentiated_gradient: momentum must be in \[0, 1\), got 1"):
        zoo.exponentiated_gradient(0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"exponentiated_gradient: b1 must be in \[0, 1\), got 2"):
        zoo.exponentiated_gradient(0.1, b1=2.0)
    tx = zoo.exponentiated_gradient_pm(0.1, total=2.0)
    too_small = "exponentiated_gradient_pm: params at ['w'] reach 3 in groups of 2, so total must exceed 6, got 2.0"
    with pytest.raises(ValueError, match=re.escape(too_small)):
        tx.init({"w": jnp.array([3.0, 1.0])})
    assert jnp.isnan(jax.jit(tx.init)({"w": jnp.array([3.0, 1.0])}).w_minus["w"][0])
    with pytest.raises(ValueError, match=r"params at \['w'\] has shape \(2,\) and no axis 1"):
        zoo.exponentiated_gradient_pm(0.1, total=20.0, axis=1).init({"w": jnp.ones(2)})
    with pytest.raises(TypeError, match="axis must be an integer, a tuple of integers or None, got 'rows'"):
        zoo.exponentiated_gradient_pm(0.1, axis="rows")
    with pytest.raises(TypeError, match="exponentiated_gradient_pm: params at the root is complex"):
        zoo.exponentiated_gradient_pm(0.1).init(jnp.ones(2, jnp.complex64))
