"""Accelerated SGD: equal to the form with three sequences and to the one with momentum, and faster than SGD."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

RATES = np.random.default_rng(1).uniform(0.05, 0.4, 13)
STEPS = 12


def scheduled(count: Any) -> Any:
    return jnp.asarray(RATES)[count]


def alpha_of(eta: float, gamma: float, mu: float) -> float:
    """The root in (0, 1) of alpha^2 = eta (1 - alpha) gamma + eta alpha mu."""
    return max(np.roots([1.0, eta * (gamma - mu), -eta * gamma]).real)


def three_sequences(
    p: np.ndarray, gradients: np.ndarray, etas: np.ndarray, mu: float, gamma: float, primal: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """All y and w; `primal(k, g)` takes the place of -eta g."""
    w = v = p
    ys, ws = [p], [p]
    for k, g in enumerate(gradients):
        alpha = alpha_of(etas[k], gamma, mu)
        y = w + alpha * gamma / (gamma + alpha * mu) * (v - w)
        np.testing.assert_allclose(y, ys[-1], rtol=1e-9)
        after = (1 - alpha) * gamma + alpha * mu
        v = ((1 - alpha) * gamma * v + alpha * mu * y - alpha * g) / after
        w = y + (-etas[k] * g if primal is None else primal[k])
        gamma = after
        following = alpha_of(etas[k + 1], gamma, mu)
        ys.append(w + following * gamma / (gamma + following * mu) * (v - w))
        ws.append(w)
    return np.stack(ys[1:]), np.stack(ws[1:])


@pytest.mark.parametrize(("mu", "gamma0"), [(0.0, None), (0.0, 0.3), (0.8, None), (0.8, 5.0), (0.8, 0.01), (0.0, 1e4)])
@pytest.mark.parametrize("constant", [True, False])
def test_equals_the_form_with_three_sequences(constant: bool, mu: float, gamma0: float | None) -> None:
    """With noisy gradients, and with rates that change at random, each known one step ahead."""
    params, gradients = problem(STEPS)
    etas = np.full(13, 0.2) if constant else RATES
    with jax.enable_x64(True):
        tx = zoo.accelerated_sgd(0.2 if constant else scheduled, mu, gamma0)
        ours, evaluated = trajectory(tx, params, gradients)
    for name, p in params.items():
        y, w = three_sequences(p, gradients[name], etas, mu, gamma0 or mu or 1 / etas[0])
        np.testing.assert_allclose(ours[name], y, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(evaluated[name], w, rtol=1e-8, atol=1e-10)


def test_equals_the_form_with_momentum() -> None:
    params, gradients = problem(STEPS)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.accelerated_sgd(scheduled, 0.8, 2.0), params, gradients)
    w = y = params["w"]
    gamma = 2.0
    for k, g in enumerate(gradients["w"]):
        alpha = alpha_of(RATES[k], gamma, 0.8)
        gamma = (1 - alpha) * gamma + alpha * 0.8
        following = alpha_of(RATES[k + 1], gamma, 0.8)
        momentum = alpha * (1 - alpha) / (alpha**2 + following * RATES[k] / RATES[k + 1])
        before, w = w, y - RATES[k] * g
        y = w + momentum * (w - before)
        np.testing.assert_allclose(ours["w"][k], y, rtol=1e-10)


def test_gamma0_of_mu_gives_constant_momentum() -> None:
    params, gradients = problem(STEPS)
    eta, mu = 0.2, 0.5
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.accelerated_sgd(eta, mu), params, gradients)
    momentum = (1 - np.sqrt(mu * eta)) / (1 + np.sqrt(mu * eta))
    w = y = params["w"]
    for k, g in enumerate(gradients["w"]):
        before, w = w, y - eta * g
        y = w + momentum * (w - before)
        np.testing.assert_allclose(ours["w"][k], y, rtol=1e-12)


def test_any_primal_step_can_be_accelerated() -> None:
    params, gradients = problem(STEPS)
    with jax.enable_x64(True):
        plain, evaluated = trajectory(zoo.accelerated_sgd(0.2, 0.3, 1.0), params, gradients)
        sgd, sgd_evaluated = trajectory(zoo.accelerated_sgd(0.2, 0.3, 1.0, inner=optax.sgd(0.2)), params, gradients)
        rmsprop = optax.rmsprop(0.05)
        ours, _ = trajectory(zoo.accelerated_sgd(0.2, 0.3, 1.0, inner=rmsprop), params, gradients)
        inner, state = [], rmsprop.init(params)
        for k in range(STEPS):
            step, state = rmsprop.update(jax.tree.map(lambda g, k=k: jnp.asarray(g[k]), gradients), state)
            inner.append(np.asarray(step["w"]))
    for form, own in ((sgd, plain), (sgd_evaluated, evaluated)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), form, own)
    expected, _ = three_sequences(params["w"], gradients["w"], np.full(13, 0.2), 0.3, 1.0, primal=inner)
    np.testing.assert_allclose(ours["w"], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_a_rate_of_0_is_a_pause(mu: float) -> None:
    """A warm-up from 0 starts when the rate does."""
    params, gradients = problem(STEPS)
    with jax.enable_x64(True):
        warm = zoo.accelerated_sgd(lambda count: jnp.where(count < 2, 0.0, 0.2), mu)
        ours, _ = trajectory(warm, params, gradients)
        later = {name: g[2:] for name, g in gradients.items()}
        expected, _ = trajectory(zoo.accelerated_sgd(0.2, mu), params, later)
    np.testing.assert_allclose(ours["w"][1], params["w"], rtol=1e-12)
    np.testing.assert_allclose(ours["w"][2:], expected["w"], rtol=1e-10)


def least_squares(tx: optax.GradientTransformation, growth: float = 1.0) -> tuple[np.ndarray, float]:
    """The loss at the start and after each step of interpolating least squares, L = 1, mu = 1/1000, and |w* - w0|^2.

    A share of 1 / growth of the gradients is multiplied by `growth`, the others are 0: the strong growth condition
    holds with this constant.
    """
    rng = np.random.default_rng(0)
    rows = np.sqrt(np.geomspace(1.0, 1e-3, 40))[:, None] * np.linalg.qr(rng.normal(size=(40, 40)))[0]
    target = rng.normal(size=40)
    factors = growth * (rng.random(400) < 1 / growth)

    def loss(p: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(rows @ (p - target)))

    def step(carry: Any, factor: jax.Array) -> Any:
        p, state = carry
        updates, state = tx.update(factor * jax.grad(loss)(p), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), loss(zoo.eval_params(state, p))

    start = jnp.zeros(40)
    losses = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), factors)[1])()
    return np.array([loss(start), *losses]), float(target @ target)


def test_is_faster_than_sgd_under_noise_that_fades_at_the_solution() -> None:
    with jax.enable_x64(True):
        sgd, convex, strongly_convex = (
            least_squares(tx, growth=2.0)[0][-1]
            for tx in (optax.sgd(0.5), zoo.accelerated_sgd(0.5), zoo.accelerated_sgd(0.5, 1e-3))
        )
    assert convex < 0.2 * sgd
    assert strongly_convex < 0.02 * sgd


def test_contracts_as_proved() -> None:
    """By 1 - sqrt(eta mu) a step with gamma0 = mu, and like 4 / (eta gamma0 k^2) with gamma0 = 1 / eta, mu = 0."""
    eta, mu = 1.0, 1e-3
    with jax.enable_x64(True):
        strongly_convex, distance = least_squares(zoo.accelerated_sgd(eta, mu))
        convex, _ = least_squares(zoo.accelerated_sgd(eta))
    k = np.arange(len(convex))
    potential = strongly_convex[0] + 0.5 * mu * distance
    assert np.all(strongly_convex <= (1 - np.sqrt(eta * mu)) ** k * potential)
    potential = convex[0] + 0.5 / eta * distance
    assert np.all(convex[1:] <= 4 / k[1:] ** 2 * potential)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"learning_rate": -1.0}, r"learning_rate must be in \[0, inf\), got -1.0"),
        ({"learning_rate": 0.1, "strong_convexity": -1.0}, r"strong_convexity must be in \[0, 10.0\], got -1.0"),
        ({"learning_rate": 0.1, "strong_convexity": 11.0}, r"strong_convexity must be in \[0, 10.0\], got 11.0"),
        ({"learning_rate": 0.1, "gamma0": 0.0}, r"gamma0 must be in \(0, inf\), got 0.0"),
    ],
)
def test_bad_numbers(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^accelerated_sgd: {sentence}"):
        zoo.accelerated_sgd(**arguments)


def test_inner_must_be_a_transformation() -> None:
    with pytest.raises(TypeError, match=r"^accelerated_sgd: inner must be an optax.GradientTransformation, got 0.1"):
        zoo.accelerated_sgd(0.1, inner=0.1)


@pytest.mark.parametrize("inner", [None, optax.sgd(0.1)])
def test_params_are_needed(inner: optax.GradientTransformation | None) -> None:
    params = jnp.ones(3)
    tx = zoo.accelerated_sgd(0.1, inner=inner)
    with pytest.raises(ValueError, match=r"^accelerated_sgd: needs params"):
        tx.update(params, tx.init(params))
