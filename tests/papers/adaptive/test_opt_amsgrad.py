"""OPT-AMSGrad: the steps written out, what the extrapolation finds, and what a good guess is worth."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory


def extrapolated(history: list[np.ndarray], reg: float) -> np.ndarray:
    u = np.stack([(after - before).ravel() for before, after in itertools.pairwise(history)], axis=1)
    z = np.linalg.solve(u.T @ u + reg * np.eye(u.shape[1]), np.ones(u.shape[1]))
    return sum(c * past for c, past in zip(z / z.sum(), history[1:], strict=True))


def written_out(w: np.ndarray, gradients: np.ndarray, span: int, reg: float, error: bool, correct: bool) -> np.ndarray:
    """One leaf, with b1 = 0.8, b2 = 0.95, eps = 1e-4, rate 0.01 and L2 decay 0.1."""
    b1, b2, eps, rate, points = 0.8, 0.95, 1e-4, 0.01, []
    theta, guess = np.zeros_like(w), np.zeros_like(w)
    v = v_max = np.full_like(w, 0.0 if error else eps)
    auxiliary, history = w.copy(), []
    for t, raw in enumerate(gradients, 1):
        g = raw + 0.1 * w
        history = [*history[-span:], g]
        m = extrapolated(history, reg) if len(history) == span + 1 else g
        second = b1 * theta + (1 - b1) * m
        theta = b1 * theta + (1 - b1) * g
        v = b2 * v + (1 - b2) * (guess - g if error else g) ** 2
        v_max = np.maximum(v_max, v)
        d = np.sqrt(v_max) + (eps if error else 0.0)
        k = rate * (np.sqrt(1 - b2**t) / (1 - b1**t) if correct else 1.0)
        auxiliary = auxiliary - k * theta / d
        w, guess = auxiliary - k * second / d, m
        points.append(w)
    return np.stack(points)


@pytest.mark.parametrize("span", [1, 3])
@pytest.mark.parametrize(("error", "correct"), [(False, False), (False, True), (True, False), (True, True)])
def test_steps_written_out(span: int, error: bool, correct: bool) -> None:
    params, gradients = problem(steps=9)
    with jax.enable_x64(True):
        tx = zoo.opt_amsgrad(
            0.01,
            b1=0.8,
            b2=0.95,
            eps=1e-4,
            span=span,
            extrapolation_reg=0.5,
            second_moment="error" if error else "gradient",
            bias_correction=correct,
            weight_decay=0.1,
        )
        ours, _ = trajectory(tx, params, gradients)
    for leaf, start in params.items():
        expected = written_out(start, gradients[leaf], span, 0.5, error, correct)
        np.testing.assert_allclose(ours[leaf], expected, rtol=1e-9, atol=1e-12)


def test_without_momentum_and_guess_it_is_amsgrad() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.opt_amsgrad(0.01, b1=0.0, eps=1e-30, predictor="zero"), params, gradients)
        plain = optax.amsgrad(0.01, b1=0.0, eps=0.0, bias_correction_mu=False, bias_correction_nu=False)
        theirs = optax_trajectory(plain, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)


def test_an_explicit_prediction_overrides_the_predictor() -> None:
    params, gradients = problem(steps=7)
    with jax.enable_x64(True):
        told, _ = trajectory(zoo.opt_amsgrad(), params, gradients, prediction=gradients)
        last, _ = trajectory(zoo.opt_amsgrad(predictor="last"), params, gradients)
        zero = jax.tree.map(np.zeros_like, gradients)
        told_nothing, _ = trajectory(zoo.opt_amsgrad(predictor="last"), params, gradients, prediction=zero)
        nothing, _ = trajectory(zoo.opt_amsgrad(predictor="zero"), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, told, last)
    jax.tree.map(np.testing.assert_array_equal, told_nothing, nothing)
    assert np.abs(last["w"] - nothing["w"]).max() > 1e-5


@pytest.mark.parametrize("span", [2, 5])
def test_the_extrapolation_finds_the_limit_of_a_geometric_sequence(span: int) -> None:
    rng = np.random.default_rng(0)
    limit, direction = rng.normal(size=(2, 4, 3))
    with jax.enable_x64(True):
        history = [jnp.asarray(limit + 0.8**i * direction) for i in range(span + 1)]
        weights = np.asarray(zoo.minimal_polynomial_extrapolation(history, 1e-12))
        found = sum(c * past for c, past in zip(weights, history[1:], strict=True))
    np.testing.assert_allclose(np.sum(weights), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found, limit, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 1e12])
def test_the_weights_add_up_to_one_at_any_scale(scale: float) -> None:
    history = scale * jax.random.normal(jax.random.key(0), (6, 7))
    for reg in (0.0, 1e-3):
        weights = zoo.minimal_polynomial_extrapolation(history, reg)
        np.testing.assert_allclose(jnp.sum(weights), 1.0, rtol=1e-5)
    if scale == 0:
        np.testing.assert_allclose(weights, 1 / 5, rtol=1e-6)


@pytest.mark.parametrize("predictor", ["extrapolation", "last"])
def test_a_good_guess_ends_the_circling_of_a_game(predictor: Any) -> None:
    """The claim of optimistic learning: on min max x y, whose gradients are predictable, AMSGrad turns in circles."""

    def distance_after(tx: optax.GradientTransformation, steps: int = 500) -> float:
        def step(carry: Any, _: None) -> Any:
            x, state = carry
            updates, state = tx.update(jnp.array([x[1], -x[0]]), state, x)
            return (optax.apply_updates(x, updates), state), None

        start = jnp.array([1.0, 0.5])
        (x, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=steps))()
        return float(jnp.linalg.norm(x))

    assert distance_after(zoo.opt_amsgrad(0.05, b1=0.0, predictor=predictor)) < 0.1
    assert distance_after(zoo.opt_amsgrad(0.05, b1=0.0, predictor="zero")) > 1


def test_half_precision_gradients_are_kept_as_they_are() -> None:
    tx = zoo.opt_amsgrad(span=2)
    params = {"w": jnp.ones((3, 2), jnp.bfloat16)}
    state = tx.init(params)
    assert [tree["w"].dtype for tree in state.history] == [jnp.bfloat16] * 3
    assert state.off["w"].dtype == state.v["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"predictor": "extrapolate"}, ValueError, r"predictor must be one of .* did you mean 'extrapolation'"),
        ({"second_moment": "errors"}, ValueError, r"second_moment must be one of .* did you mean 'error'"),
        ({"span": 0}, ValueError, r"span must be in \[1, inf\), got 0"),
        ({"span": 2.5}, TypeError, r"span must be a whole number, got 2\.5"),
        ({"extrapolation_reg": -1.0}, ValueError, r"extrapolation_reg must be in \[0, inf\), got -1"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"opt_amsgrad: {sentence}"):
        zoo.opt_amsgrad(**arguments)


def test_a_prediction_of_another_shape_is_refused() -> None:
    params = {"w": jnp.ones((3, 2))}
    tx = zoo.opt_amsgrad()
    with pytest.raises(ValueError, match=r"opt_amsgrad: at \['w'\] .* prediction has shape \(2,\)"):
        tx.update(params, tx.init(params), prediction={"w": jnp.ones(2)})


def test_a_span_that_init_cannot_know_is_refused() -> None:
    params = {"w": jnp.ones((3, 2))}
    with pytest.raises(TypeError, match="opt_amsgrad: span must be known when init runs"):
        jax.jit(lambda span: zoo.opt_amsgrad(span=span).update(params, zoo.opt_amsgrad(span=span).init(params)))(3)


def test_a_history_of_one_point_is_refused() -> None:
    with pytest.raises(
        ValueError, match="minimal_polynomial_extrapolation: history must hold two arrays or more, got 1"
    ):
        zoo.minimal_polynomial_extrapolation([jnp.ones(3)])
    with pytest.raises(ValueError, match=r"reg must be in \[0, inf\), got -1"):
        zoo.minimal_polynomial_extrapolation(jnp.ones((3, 2)), -1.0)
