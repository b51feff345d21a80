"""The median of the gradients: closed forms are minimisers, limits, and what outliers and heavy tails do to it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

LOSSES = {
    "l2": lambda r, mu: np.linalg.norm(r),
    "l1": lambda r, mu: np.abs(r).sum(),
    "huber": lambda r, mu: np.linalg.norm(r) ** 2 / (2 * mu) if np.linalg.norm(r) <= mu else np.linalg.norm(r) - mu / 2,
    "mean": lambda r, mu: 0.5 * np.linalg.norm(r) ** 2,
}


def stream(tx: optax.GradientTransformation, gradients: Any) -> Any:
    """The estimates after each gradient, stacked on axis 0."""

    def step(state: Any, g: Any) -> Any:
        m, state = tx.update(g, state)
        return state, m

    return jax.lax.scan(step, tx.init(jax.tree.map(lambda g: g[0], gradients)), gradients)[1]


@pytest.mark.parametrize("size", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("norm", LOSSES)
def test_each_step_minimises_the_proximal_objective(norm: str, size: float) -> None:
    rng = np.random.default_rng(0)
    tau, mu, first, g = 0.7, 1.3, rng.normal(size=4), size * rng.normal(size=4)
    with jax.enable_x64(True):
        tx = zoo.median_gradient(tau, norm, mu)
        state = tx.init(jnp.asarray(first))._replace(m=jnp.asarray(first))
        m = np.asarray(tx.update(jnp.asarray(g), state)[0])

    def objective(z: np.ndarray) -> float:
        return LOSSES[norm](z - g, mu) + np.sum((z - first) ** 2) / (2 * tau)

    reached = objective(m)
    for scale in (1e-1, 1e-3):
        for direction in rng.normal(size=(200, 4)):
            assert objective(m + scale * direction) > reached - 1e-12


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_huge_tau_is_sgd(norm: str) -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.median_spp(0.1, 1e6, norm), params, gradients)
        sgd, _ = trajectory(optax.sgd(0.1), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, sgd)


@pytest.mark.parametrize(("norm", "clip"), [("l2", optax.clip_by_global_norm(0.5)), ("l1", optax.clip(0.5))])
def test_one_step_from_zero_is_plain_clipping(norm: str, clip: optax.GradientTransformation) -> None:
    gradient = {"a": jnp.array([3.0, -0.1]), "b": jnp.array([[0.4]])}
    tx = zoo.median_gradient(0.5, norm)
    ours, theirs = tx.update(gradient, tx.init(gradient))[0], clip.update(gradient, clip.init(gradient))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_the_squared_norm_is_an_ema() -> None:
    params, gradients = problem()
    tau = 0.25
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.median_spp(0.1, tau, "sq_l2"), params, gradients)
        mean, _ = trajectory(optax.chain(zoo.median_gradient(tau, "mean"), optax.sgd(0.1)), params, gradients)
        ema = optax.chain(optax.ema(1 / (1 + tau), debias=False), optax.sgd(0.1))
        theirs, _ = trajectory(ema, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, mean)


def test_huber_without_a_quadratic_part_is_the_geometric_median() -> None:
    _, gradients = problem()
    huber, l2 = (stream(zoo.median_gradient(0.5, norm, mu=0.0), gradients) for norm in ("huber", "l2"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), huber, l2)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_constant_gradient_is_reached_in_finitely_many_steps(norm: str) -> None:
    g = jnp.array([3.0, -4.0])
    steps = int(np.ceil((5.0 if norm == "l2" else 4.0) / 0.6))
    path = stream(zoo.median_gradient(0.6, norm), jnp.broadcast_to(g, (steps + 2, 2)))
    assert not np.allclose(path[steps - 2], g, atol=1e-3)
    np.testing.assert_allclose(path[steps - 1 :], np.broadcast_to(g, (3, 2)), rtol=1e-5)


@pytest.mark.parametrize("norm", LOSSES)
def test_the_first_gradient_may_be_the_start(norm: str) -> None:
    _, gradients = problem()
    path = stream(zoo.median_gradient(0.1, norm, init="first"), gradients)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m[0], g[0], rtol=1e-6), path, gradients)
    assert not np.allclose(path["w"][1], gradients["w"][1])


@pytest.mark.parametrize("norm", ["l2", "l1", "huber"])
def test_no_gradient_moves_the_estimate_by_more_than_tau(norm: str) -> None:
    gradients = jnp.array([[1.0, 2.0], [1e15, -1e18], [-3e6, 0.0]], jnp.float32)
    path = jnp.concatenate([jnp.zeros((1, 2)), stream(zoo.median_gradient(0.5, norm), gradients)])
    moves = jnp.diff(path, axis=0)
    sizes = jnp.max(jnp.abs(moves), axis=1) if norm == "l1" else jnp.linalg.norm(moves, axis=1)
    assert jnp.all(sizes <= 0.5 * (1 + 1e-6))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("norm", LOSSES)
def test_a_gradient_that_is_not_finite_is_skipped(norm: str, bad: float) -> None:
    good = {"a": jnp.array([1.0, 2.0]), "b": jnp.ones((1, 1))}
    tx = zoo.median_gradient(0.5, norm)
    _, state = tx.update(good, tx.init(good))
    m, after = tx.update({**good, "a": jnp.array([1.0, bad])}, state)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((m, after)))
    if norm in ("l2", "huber"):
        jax.tree.map(np.testing.assert_array_equal, m, state.m)
    elif np.isnan(bad) or norm == "mean":
        assert m["a"][1] == state.m["a"][1] and m["a"][0] != state.m["a"][0]


@pytest.mark.parametrize("norm", ["l2", "l1", "huber"])
def test_outliers_pull_the_mean_and_not_the_median(norm: str) -> None:
    """A tenth of the gradients is a hundred times too long and points elsewhere."""
    rng = np.random.default_rng(0)
    truth, elsewhere = np.array([1.0, -1.0, 0.5]), np.array([-50.0, 80.0, 90.0])
    gradients = truth + 0.3 * rng.normal(size=(4000, 3))
    gradients = np.where(rng.random((4000, 1)) < 0.1, elsewhere, gradients).astype(np.float32)

    def error(tx: optax.GradientTransformation) -> float:
        return float(np.max(np.linalg.norm(np.asarray(stream(tx, gradients))[1000:] - truth, axis=1)))

    assert error(zoo.median_gradient(0.02, norm, mu=0.1)) < 0.4
    assert error(zoo.median_gradient(0.02, "mean")) > 5


def test_under_heavy_tails_the_median_finds_the_minimum_and_the_mean_does_not() -> None:
    """Cauchy noise has no mean: SGD with an EMA of the gradients is thrown about, SGD with their median converges."""
    noise = np.random.default_rng(1).standard_cauchy(size=(3000, 10)).astype(np.float32)

    def final_distance(tx: optax.GradientTransformation) -> float:
        def step(carry: Any, xi: jax.Array) -> Any:
            x, state = carry
            updates, state = tx.update(x + xi, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), jnp.linalg.norm(x)

        start = jnp.full(10, 3.0)
        return float(jnp.max(jax.lax.scan(step, (start, tx.init(start)), noise)[1][-1000:]))

    assert final_distance(zoo.median_spp(0.01, 0.1, "l1")) < 1
    assert final_distance(zoo.median_spp(0.01, 0.1, "l2")) < 1
    assert final_distance(zoo.median_spp(0.01, 0.1, "sq_l2")) > 10


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"median_gradient: tau must be in \(0, inf\), got 0"):
        zoo.median_gradient(0.0)
    with pytest.raises(ValueError, match="median_gradient: norm must be one of 'l2', 'l1', 'huber', 'mean', got 'l3'"):
        zoo.median_gradient(1.0, "l3")
    with pytest.raises(ValueError, match="median_gradient: init must be one of 'zero', 'first', got 'last'"):
        zoo.median_gradient(1.0, init="last")
    with pytest.raises(ValueError, match="median_spp: norm='huber' needs mu"):
        zoo.median_spp(0.1, 1.0, "huber")
    with pytest.raises(ValueError, match=r"median_spp: mu must be in \[0, inf\), got -1"):
        zoo.scale_by_median_spp(1.0, "huber", -1.0)
    with pytest.raises(TypeError, match="median_gradient: params at the root is complex"):
        zoo.median_gradient(1.0, "l1").init(jnp.ones(2, jnp.complex64))


def test_the_geometric_median_of_complex_gradients_is_that_of_their_parts() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(6, 5, 2)).astype(np.float32)
    whole = stream(zoo.median_gradient(0.7), parts[..., 0] + 1j * parts[..., 1])
    split = np.asarray(stream(zoo.median_gradient(0.7), parts))
    np.testing.assert_allclose(whole, split[..., 0] + 1j * split[..., 1], rtol=1e-5)
