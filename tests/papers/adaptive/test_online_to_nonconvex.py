"""Online-to-nonconvex conversion: points between iterates, learners, epochs; and random scaling of any update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

import optax_zoo as zoo
from tests.support import problem, trajectory


def record(tx: optax.GradientTransformation, params: Any, gradients: Any) -> tuple[Any, Any]:
    """Updates and states after each gradient, stacked on axis 0."""

    def step(carry: Any, grads: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), (updates, state)

    with jax.enable_x64(True):
        run = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])
        return jax.tree.map(np.asarray, run(params, gradients))


def flat(tree: Any) -> np.ndarray:
    """One row a step."""
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def test_without_scaling_the_gradient_is_integrated_twice() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.online_to_nonconvex(0.1, scaling="none"), params, gradients)
    for name, path in ours.items():
        plays = -0.1 * np.cumsum(gradients[name], axis=0)
        np.testing.assert_allclose(path, params[name] + np.cumsum(plays, axis=0), rtol=1e-9)


def test_gradients_are_taken_between_the_iterates() -> None:
    params, gradients = problem()
    tx = zoo.online_to_nonconvex(0.1, radius=0.5)
    updates, _ = record(tx, params, gradients)
    _, states = record(tx, params, gradients)
    plays, rests = (flat(optax.tree.get(states, name)) for name in ("delta", "rest"))
    shares = 1 - (rests / plays)
    np.testing.assert_allclose(shares, np.broadcast_to(shares[:, :1], shares.shape), rtol=1e-9)
    assert np.all((shares > 0) & (shares < 1)) and np.ptp(shares[:, 0]) > 0.3
    iterates = np.cumsum(plays, axis=0)
    points = np.cumsum(flat(updates), axis=0)
    before = iterates - plays
    np.testing.assert_allclose(points, before + shares * plays, rtol=1e-9, atol=1e-12)


def test_plays_stay_in_the_ball_over_the_whole_tree() -> None:
    params, gradients = problem()
    _, states = record(zoo.online_to_nonconvex(0.1, radius=0.5), params, gradients)
    plays, g = flat(states[0].delta), flat(gradients)
    expected = np.zeros_like(plays[0])
    for i, play in enumerate(plays):
        expected = expected - 0.1 * g[i]
        expected *= min(1.0, 0.5 / np.linalg.norm(expected))
        np.testing.assert_allclose(play, expected, rtol=1e-9)
    assert np.linalg.norm(plays[-1]) > 0.49


def test_the_beta_learner_is_momentum_with_a_pull_to_zero() -> None:
    params, gradients = problem()
    tx = zoo.online_to_nonconvex(0.1, learner="ogd_beta", beta=0.9, mu=2.0, scaling="none")
    updates, _ = record(tx, params, gradients)
    play = np.zeros_like(flat(gradients)[0])
    for update, g in zip(flat(updates), flat(gradients), strict=True):
        play = 0.9 / 1.2 * (play - 0.1 * g)
        np.testing.assert_allclose(update, play, rtol=1e-9)


@pytest.mark.parametrize("scaling", ["uniform", "exponential", "none"])
def test_a_learner_of_ones_own(scaling: str) -> None:
    params, gradients = problem()
    own = zoo.OnlineLearner(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda g, delta, params: (jax.tree.map(lambda d, g: d - 0.1 * g, delta, g),) * 2,
    )
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.online_to_nonconvex(learner=own, scaling=scaling), params, gradients)
        theirs, _ = trajectory(zoo.online_to_nonconvex(0.1, scaling=scaling), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)


@pytest.mark.parametrize("scaling", ["uniform", "exponential"])
def test_epochs_restart_the_learner_and_average_their_points(scaling: str) -> None:
    params, gradients = problem(steps=12)
    tx = zoo.online_to_nonconvex(0.1, scaling=scaling, epoch=4)
    with jax.enable_x64(True):
        path, evaluated = trajectory(tx, params, gradients)
    _, states = record(tx, params, gradients)
    assert [bool(np.any(play)) for play in flat(optax.tree.get(states, "delta"))] == [True, True, True, False] * 3
    for name, points in path.items():
        visited = np.concatenate([params[name][None], points[:-1]])
        for step in range(12):
            since = step - step % 4
            np.testing.assert_allclose(evaluated[name][step], visited[since : step + 1].mean(axis=0), rtol=1e-9)


def test_without_epochs_the_parameters_are_evaluated() -> None:
    params, gradients = problem(steps=2)
    path, evaluated = trajectory(zoo.online_to_nonconvex(0.1), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, path, evaluated)


def scales(tx: optax.GradientTransformation, steps: int = 20000) -> np.ndarray:
    """Updates for gradients of ones."""
    ones = jnp.ones((steps, 2))

    def step(state: Any, g: Array) -> Any:
        u, state = tx.update(g, state)
        return state, u

    return np.asarray(jax.lax.scan(step, tx.init(ones[0]), ones)[1])


@pytest.mark.parametrize(("distribution", "variance"), [("exponential", 1.0), ("uniform02", 1 / 3), ("none", 0.0)])
def test_scaling_keeps_the_mean_of_updates(distribution: str, variance: float) -> None:
    drawn = scales(zoo.random_scaling(distribution, seed=3, importance=False))
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    assert abs(drawn.mean() - 1) < 5 * np.sqrt(variance / len(drawn)) + 1e-6
    np.testing.assert_allclose(drawn[:, 0].var(), variance, rtol=0.05)
    assert np.all(drawn >= 0) and (distribution != "uniform02" or np.all(drawn <= 2))


def test_scales_are_those_of_the_seed() -> None:
    first, again, other = (scales(zoo.random_scaling(seed=seed), 50) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)
    assert abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < 0.4


def test_uniform_scales_weight_the_next_gradient() -> None:
    s = scales(zoo.random_scaling("uniform02", importance=False), 6)[:, 0]
    weighted = scales(zoo.random_scaling("uniform02"), 6)[:, 0]
    np.testing.assert_allclose(weighted, s * np.concatenate([[1.0], 2 - s[:-1]]), rtol=1e-6)


def test_an_inner_optimizer_sees_the_weighted_gradient() -> None:
    s = scales(zoo.random_scaling("uniform02", importance=False), 6)[:, 0]
    wrapped = scales(zoo.random_scaling("uniform02", inner=optax.trace(0.9)), 6)[:, 0]
    trace, expected = 0.0, []
    for scale, weight in zip(s, np.concatenate([[1.0], 2 - s[:-1]]), strict=True):
        trace = 0.9 * trace + weight
        expected.append(scale * trace)
    np.testing.assert_allclose(wrapped, expected, rtol=1e-5)


@pytest.mark.parametrize("distribution", ["exponential", "uniform02"])
def test_exponentiated_conversion_is_a_scaled_learner(distribution: str) -> None:
    params, gradients = problem()
    learner = {"learner": "ogd_beta", "beta": 0.9, "mu": 1.0}
    with jax.enable_x64(True):
        whole, _ = trajectory(zoo.online_to_nonconvex(0.1, scaling=distribution, seed=5, **learner), params, gradients)
        played = zoo.online_to_nonconvex(0.1, scaling="none", **learner)
        parts, _ = trajectory(zoo.random_scaling(distribution, 5, inner=played), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), whole, parts)


@pytest.mark.parametrize("scaling", ["uniform", "exponential"])
def test_on_average_gradients_along_plays_add_up_to_the_decrease(scaling: str) -> None:
    """The idea of both papers, on a function that no linear model fits: kinks and steep waves."""
    start = jnp.array([0.7, -0.4])

    def rough(x: Array) -> Array:
        return jnp.sum(jnp.abs(x) + 0.1 * jnp.abs(jnp.sin(20 * x)))

    def walk(seed: Array) -> tuple[Array, Array]:
        tx = zoo.online_to_nonconvex(0.01, radius=0.05, scaling=scaling, seed=seed)

        def step(carry: tuple, _: None) -> tuple:
            w, state = carry
            g = jax.grad(rough)(w)
            gained = jnp.sum(g * optax.tree.get(state, "delta"))
            iterate = w + optax.tree.get(state, "rest", default=jnp.zeros(2))
            updates, state = tx.update(g, state, w)
            return (optax.apply_updates(w, updates), state), (gained, rough(iterate))

        gained, values = jax.lax.scan(step, (start, tx.init(start)), length=20)[1]
        return gained.sum(), values[-1] - rough(start)

    gained, decrease = jax.jit(jax.vmap(walk))(jnp.arange(20000))
    error = np.std(gained - decrease) / np.sqrt(20000)
    assert error < 0.005
    assert abs(np.mean(gained - decrease)) < 4 * error
    assert np.mean(decrease) < -0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="online_to_nonconvex: learner='ogd_ball' needs learning_rate"):
        zoo.online_to_nonconvex()
    with pytest.raises(ValueError, match=r"learner must be one of 'ogd_ball', 'ogd_beta', got 'ogd_bal'; did you mean"):
        zoo.online_to_nonconvex(0.1, learner="ogd_bal")
    with pytest.raises(TypeError, match="online_to_nonconvex: learner must be a word or an OnlineLearner"):
        zoo.online_to_nonconvex(0.1, learner=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"online_to_nonconvex: radius must be in \(0, inf\), got 0"):
        zoo.online_to_nonconvex(0.1, radius=0.0)
    with pytest.raises(ValueError, match=r"online_to_nonconvex: epoch must be in \[1, inf\), got 0"):
        zoo.online_to_nonconvex(0.1, epoch=0)
    with pytest.raises(ValueError, match=r"online_to_nonconvex: scaling must be one of .*, got 'gaussian'"):
        zoo.online_to_nonconvex(0.1, scaling="gaussian")
    with pytest.raises(
        ValueError, match=r"random_scaling: distribution must be one of .*, got 'uniform'; did you mean"
    ):
        zoo.random_scaling("uniform")
    with pytest.raises(ValueError, match=r"random_scaling: seed must be in \[0, 4294967295\], got -1"):
        zoo.random_scaling(seed=-1)
    with pytest.raises(TypeError, match=r"random_scaling: inner must be an optax.GradientTransformation, got 0.1"):
        zoo.random_scaling(inner=0.1)
    tx = zoo.online_to_nonconvex(0.1, epoch=3)
    with pytest.raises(ValueError, match="online_to_nonconvex: needs params for the mean of an epoch"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
