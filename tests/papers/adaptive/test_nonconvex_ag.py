"""Accelerated proximal gradient with SCAD and MCP: the authors' recursion, its fixed points, and sparse recovery."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

LAM, A, GAMMA = 0.3, 3.7, 2.0


def soft(x: np.ndarray, threshold: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def concave_slope(x: np.ndarray, penalty: str) -> np.ndarray:
    size = np.abs(x)
    if penalty == "mcp":
        return np.where(size < GAMMA * LAM, -x / GAMMA, -LAM * np.sign(x))
    middle = -(size - LAM) * np.sign(x) / (A - 1)
    return np.where(size <= LAM, 0.0, np.where(size < A * LAM, middle, -LAM * np.sign(x)))


def recursion(
    start: dict[str, np.ndarray], gradients: dict[str, np.ndarray], omega: float, penalty: str, restart: bool
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], int]:
    """The points where gradients are taken, the solutions, and the number of restarts; only leaf w is penalised."""
    alpha, restarted_at, restarts, old_speed, speed = 2 / (1 + np.sqrt(5)), 0, 0, 1.0, 0.0
    b, b_md, points, solutions = dict(start), dict(start), [], []
    for k in range(1, len(gradients["w"]) + 1):
        b_ag = {}
        for name in start:
            lam = LAM if name == "w" else 0.0
            slope = gradients[name][k - 1] + (concave_slope(b_md[name], penalty) if name == "w" else 0.0)
            b[name] = soft(b[name] - omega / alpha * slope, omega / alpha * lam)
            b_ag[name] = soft(b_md[name] - omega * slope, omega * lam)
        if restart and old_speed > speed and k + 1 - restarted_at >= 3:
            alpha, restarted_at, restarts = 1.0, k + 1, restarts + 1
        else:
            alpha = 2 / (1 + np.sqrt(1 + 4 / alpha**2))
        before, b_md = b_md, {name: (1 - alpha) * b_ag[name] + alpha * b[name] for name in start}
        moved = sum(np.sum((b_md[name] - before[name]) ** 2) for name in start)
        old_speed, speed = speed, np.sqrt(moved)
        points.append(b_md)
        solutions.append(b_ag)
    return points, solutions, restarts


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("penalty", ["scad", "mcp"])
def test_equals_the_authors_recursion(penalty: str, restart: bool) -> None:
    params, gradients = problem(steps=30)
    tx = zoo.nonconvex_ag(0.2, penalty, LAM, A, GAMMA, restart, mask={"w": True, "b": False})
    with jax.enable_x64(True):
        ours, evaluated = trajectory(tx, params, gradients)
    points, solutions, restarts = recursion(params, gradients, 0.2, penalty, restart)
    assert (restarts > 1) == restart
    for k, (point, solution) in enumerate(zip(points, solutions, strict=True)):
        for name in params:
            np.testing.assert_allclose(ours[name][k], point[name], rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(evaluated[name][k], solution[name], rtol=1e-10, atol=1e-12)
    assert any(np.any(solution["w"] == 0) for solution in solutions)


def regression() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Inputs, targets, sparse coefficients, and the Lipschitz constant of the gradient of half the mean square."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 40))
    truth = np.zeros(40)
    truth[[3, 11, 17, 29]] = [3.0, -2.0, 2.5, -4.0]
    targets = inputs @ truth + 0.3 * rng.normal(size=120)
    return inputs, targets, truth, float(np.linalg.eigvalsh(inputs.T @ inputs / 120)[-1])


def fit(tx: optax.GradientTransformation, steps: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """The last state, and the parameters and solutions after each step."""
    inputs, targets, _, _ = regression()

    def step(carry: Any, _: None) -> Any:
        p, state = carry
        updates, state = tx.update(inputs.T @ (inputs @ p - targets) / len(targets), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), (p, zoo.eval_params(state, p))

    start = jnp.zeros(inputs.shape[1])
    run = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=steps))
    (_, state), (points, solutions) = run()
    return state, np.asarray(points), np.asarray(solutions)


@pytest.mark.parametrize("penalty", ["scad", "mcp"])
def test_selects_the_true_variables_without_shrinking_them(penalty: str) -> None:
    inputs, targets, truth, smoothness = regression()
    omega = 0.99 / max(smoothness, 1 / (A - 1) if penalty == "scad" else 1 / GAMMA)
    with jax.enable_x64(True):
        state, _, solutions = fit(zoo.nonconvex_ag(omega, penalty, LAM), 300)
    found = solutions[-1]
    support = truth != 0
    np.testing.assert_array_equal(found != 0, support)
    oracle = np.linalg.lstsq(inputs[:, support], targets, rcond=None)[0]
    np.testing.assert_allclose(found[support], oracle, rtol=1e-6)
    np.testing.assert_array_equal(zoo.nonconvex_ag_params(state), found)


@pytest.mark.parametrize("penalty", ["scad", "mcp"])
def test_rests_at_a_fixed_point_of_the_proximal_step(penalty: str) -> None:
    inputs, targets, _, smoothness = regression()
    omega = 0.99 / max(smoothness, 1.0)
    with jax.enable_x64(True):
        _, points, _ = fit(zoo.nonconvex_ag(omega, penalty, LAM), 400)
    p = points[-1]
    slope = inputs.T @ (inputs @ p - targets) / len(targets) + concave_slope(p, penalty)
    np.testing.assert_allclose(soft(p - omega * slope, omega * LAM), p, atol=1e-9)


def test_is_faster_than_the_proximal_gradient_method() -> None:
    """The paper's claim; the same steps without acceleration, to the same solution."""
    inputs, targets, _, smoothness = regression()
    scale = np.geomspace(1.0, 0.2, 40)
    omega = 0.99 / max(smoothness, 1 / (A - 1))

    def gradient(p: Any) -> Any:
        return scale * (inputs.T @ (inputs @ (scale * p) - targets)) / len(targets)

    def accelerated(steps: int) -> np.ndarray:
        tx = zoo.nonconvex_ag(omega, "scad", 0.02)

        def step(carry: Any, _: None) -> Any:
            p, state = carry
            updates, state = tx.update(gradient(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        start = jnp.zeros(40)
        (p, state), _ = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=steps))()
        return np.asarray(zoo.eval_params(state, p))

    def slope_of_scad(p: np.ndarray) -> np.ndarray:
        return -np.clip(soft(p, 0.02) / (A - 1), -0.02, 0.02)

    with jax.enable_x64(True):
        solution, early = accelerated(3000), accelerated(60)
    plain = np.zeros(40)
    for _ in range(60):
        plain = soft(plain - omega * (gradient(plain) + slope_of_scad(plain)), omega * 0.02)
    assert np.linalg.norm(early - solution) < 0.3 * np.linalg.norm(plain - solution)


def test_without_penalty_it_is_an_accelerated_gradient_method() -> None:
    params, gradients = problem()
    omega = 0.1
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.nonconvex_ag(omega, lam=0.0, restart=False), params, gradients)
    alpha = 2 / (1 + np.sqrt(5))
    b = b_md = params["w"]
    for k, g in enumerate(gradients["w"]):
        b, b_ag = b - omega / alpha * g, b_md - omega * g
        alpha = 2 / (1 + np.sqrt(1 + 4 / alpha**2))
        b_md = (1 - alpha) * b_ag + alpha * b
        np.testing.assert_allclose(ours["w"][k], b_md, rtol=1e-12)


def test_the_solution_is_found_in_any_state() -> None:
    params = {"w": jnp.array([0.1, -2.0]), "b": jnp.array([0.1])}
    tx = optax.chain(optax.clip(1.0), zoo.nonconvex_ag(1.0, lam=0.5, mask={"w": True, "b": False}))
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    solution = zoo.nonconvex_ag_params(state)
    assert solution["w"][0] == 0 and solution["w"][1] != 0 and solution["b"][0] != 0
    np.testing.assert_array_equal(zoo.eval_params(state, params)["w"], solution["w"])
    with pytest.raises(ValueError, match=r"^nonconvex_ag_params: no state of nonconvex_ag"):
        zoo.nonconvex_ag_params(optax.adam(0.1).init(params))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"penalty": "scda"}, "penalty must be one of 'scad', 'mcp', got 'scda'; did you mean 'scad'"),
        ({"penalty": None}, "penalty must be one of 'scad', 'mcp', got None"),
        ({"lam": -1.0}, r"lam must be in \[0, inf\), got -1.0"),
        ({"a": 2.0}, r"a must be in \(2, inf\), got 2.0"),
        ({"penalty": "mcp", "gamma": 0.0}, r"gamma must be in \(0, inf\), got 0.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^nonconvex_ag: {sentence}"):
        zoo.nonconvex_ag(0.1, **arguments)


def test_complex_parameters_and_missing_ones_are_refused() -> None:
    tx = zoo.nonconvex_ag(0.1)
    with pytest.raises(TypeError, match=r"^nonconvex_ag: params at \['w'\] is complex"):
        tx.init({"w": jnp.ones(2, jnp.complex64)})
    with pytest.raises(ValueError, match=r"^nonconvex_ag: needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(TypeError, match=r"^nonconvex_ag: mask must hold True or False"):
        masked = zoo.nonconvex_ag(0.1, mask=1.0)
        masked.update(jnp.ones(2), masked.init(jnp.ones(2)), jnp.ones(2))
