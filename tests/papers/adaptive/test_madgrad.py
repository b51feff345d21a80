"""MADGRAD and its mirror version: their equations with every flag, guards, and what dual averaging means."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

SETTINGS = {"momentum": 0.7, "weight_decay": 0.3, "eps": 1e-3}


RATES = 0.05 / np.arange(1.0, 13.0)


def rates(count: Any) -> Any:
    return jnp.asarray(RATES)[count]


def with_guard(d: np.ndarray) -> np.ndarray:
    return np.where(d == 0, np.inf, d)


def dual_averaging(
    p: np.ndarray, gradients: np.ndarray, momentum: float, weight_decay: float, eps: float, decouple_decay: bool
) -> list[np.ndarray]:
    x0, q, s, walked = p, np.zeros_like(p), np.zeros_like(p), []
    for t, g in enumerate(gradients, start=1):
        rate = RATES[t - 1] + eps
        g = g if decouple_decay else g + weight_decay * p
        q, s = q + rate * np.sqrt(t) * g**2, s + rate * np.sqrt(t) * g
        after = momentum * p + (1 - momentum) * (x0 - s / with_guard(np.cbrt(q) + eps))
        p = after - rate * weight_decay * p if decouple_decay else after
        walked.append(p)
    return walked


def mirror_descent(
    p: np.ndarray, gradients: np.ndarray, momentum: float, weight_decay: float, eps: float, decouple_decay: bool
) -> list[np.ndarray]:
    z, q, walked = p, np.zeros_like(p), []
    for t, g in enumerate(gradients, start=1):
        rate = RATES[t - 1] + eps
        g = g if decouple_decay else g + weight_decay * p
        z = (1 - rate * weight_decay) * z if decouple_decay else z
        q = np.sqrt((t - 1) / t) * q + g**2
        z = z - rate * np.cbrt(t) * g / with_guard(np.cbrt(q) + eps)
        p = momentum * p + (1 - momentum) * z
        walked.append(p)
    return walked


METHODS = [pytest.param(zoo.madgrad, dual_averaging, id="madgrad"), pytest.param(zoo.mirror_madgrad, mirror_descent)]


@pytest.mark.parametrize("decouple_decay", [False, True])
@pytest.mark.parametrize(("make", "definition"), METHODS)
def test_equations_with_every_flag(make: Callable, definition: Callable, decouple_decay: bool) -> None:
    params, gradients = problem()
    tx = make(rates, **SETTINGS, decouple_decay=decouple_decay, mask={"w": True, "b": False})
    with jax.enable_x64(True):
        ours, _ = trajectory(tx, params, gradients)
    for name, settings in {"w": SETTINGS, "b": {**SETTINGS, "weight_decay": 0.0}}.items():
        expected = definition(params[name], gradients[name], **settings, decouple_decay=decouple_decay)
        np.testing.assert_allclose(ours[name], expected, rtol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_optax_where_optax_has_it(weight_decay: float) -> None:
    """Up to its sqrt(t), which is a float32."""
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.madgrad(weight_decay=weight_decay), params, gradients)
        theirs = optax_trajectory(contrib.madgrad(0.01, weight_decay=weight_decay), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8), ours, theirs)


def test_the_first_mirror_step_is_a_signed_cube_root() -> None:
    params, gradients = problem(steps=1)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.mirror_madgrad(0.1, momentum=0.0), params, gradients)
    for name, p in params.items():
        np.testing.assert_allclose(ours[name][0], p - 0.1 * np.cbrt(gradients[name][0]), rtol=1e-12)


@pytest.mark.parametrize("make", [zoo.madgrad, zoo.mirror_madgrad])
def test_nothing_is_divided_by_0(make: Callable) -> None:
    params = {"w": jnp.array([1.0, 2.0])}
    tx = make(0.1, momentum=0.0, eps=0.0)
    updates, state = tx.update({"w": jnp.array([0.0, 1.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [0.0, -(0.1 ** (2 / 3)) if make is zoo.madgrad else -0.1], rtol=1e-5)
    updates, _ = tx.update({"w": jnp.array([1.0, 1.0])}, state, params)
    assert np.all(np.isfinite(updates["w"])) and updates["w"][0] < 0


@pytest.mark.parametrize("make", [zoo.madgrad, zoo.mirror_madgrad])
def test_a_rate_of_0_stays_0(make: Callable) -> None:
    """eps is added to other rates; the warm-up's first step leaves no trace in madgrad's sums."""
    params, gradients = problem(steps=3)

    def warm_up(count: Any) -> Any:
        return jnp.where(count > 0, 0.1, 0.0)

    with jax.enable_x64(True):
        ours, _ = trajectory(make(warm_up, eps=1.0), params, gradients)
        spoiled = {name: np.concatenate([g[:1] * 50, g[1:]]) for name, g in gradients.items()}
        other, _ = trajectory(make(warm_up, eps=1.0), params, spoiled)
    np.testing.assert_array_equal(ours["w"][0], params["w"])
    assert np.abs(ours["w"][1] - params["w"]).max() > 0.01
    assert np.array_equal(ours["w"], other["w"]) == (make is zoo.madgrad)


def test_dual_averaging_looks_back_to_the_start() -> None:
    """Where the weighted gradients cancel, the iterate is the initial point again, however far it has been."""
    p = np.array([1.0, -2.0])
    gradients = np.array([[3.0, 1.0], [-3.0 / np.sqrt(2), -1.0 / np.sqrt(2)]])
    with jax.enable_x64(True):
        dual, _ = trajectory(zoo.madgrad(0.5, momentum=0.0, eps=0.0), p, gradients)
        mirror, _ = trajectory(zoo.mirror_madgrad(0.5, momentum=0.0), p, gradients)
    assert np.abs(dual[0] - p).min() > 0.1
    np.testing.assert_allclose(dual[1], p, rtol=1e-12)
    assert np.abs(mirror[1] - p).min() > 0.05


def test_scales_that_one_rate_cannot_serve() -> None:
    """Slopes from 1 to 1/1000: the cube root evens them out, SGD stays behind on the small or overshoots the large."""
    slopes, target = np.geomspace(1.0, 1e-3, 10), np.linspace(-1.0, 1.0, 10)

    def worst(tx: optax.GradientTransformation) -> float:
        def step(carry: Any, _: None) -> Any:
            w, state = carry
            updates, state = tx.update(slopes * jnp.sign(w - target), state, w)
            return (optax.apply_updates(w, updates), state), None

        start = jnp.zeros(10)
        (w, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=400))()
        return float(np.abs(w - target).max())

    with jax.enable_x64(True):
        adaptive = min(worst(zoo.madgrad(rate)) for rate in (0.003, 0.01, 0.03))
        sgd = min(worst(optax.sgd(rate)) for rate in np.geomspace(0.01, 10, 13))
    assert adaptive < 0.2 * sgd


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"learning_rate": -0.1}, r"learning_rate must be in \[0, inf\), got -0.1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"eps": -1e-6}, r"eps must be in \[0, inf\), got -1e-06"),
        ({"weight_decay": float("nan")}, r"weight_decay must be in \[0, inf\), got nan"),
    ],
)
@pytest.mark.parametrize("make", [zoo.madgrad, zoo.mirror_madgrad])
def test_bad_numbers(make: Callable, arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{make.__name__}: {sentence}"):
        make(**arguments)


@pytest.mark.parametrize("make", [zoo.madgrad, zoo.mirror_madgrad])
def test_params_are_needed(make: Callable) -> None:
    params = jnp.ones(3)
    tx = make()
    with pytest.raises(ValueError, match=f"^{make.__name__}: needs params"):
        tx.update(params, tx.init(params))
