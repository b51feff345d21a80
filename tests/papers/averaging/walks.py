"""Walks through a few steps, and through a noisy valley, that tests of several averages share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import optax_zoo as zoo
from tests.support import problem, trajectory

MOMENTUM = optax.sgd(0.1, 0.9)


def walk(tx: optax.GradientTransformation, steps: int = 12, **extra: Any) -> tuple[Any, Any, Any]:
    """First parameters, parameters and parameters to evaluate after each step, in float64."""
    params, gradients = problem(steps)
    with jax.enable_x64(True):
        trained, averaged = trajectory(tx, params, gradients, **extra)
    return params, trained, averaged


def moves(inner: optax.GradientTransformation, steps: int = 12) -> dict[str, np.ndarray]:
    """The updates of an optimizer that does not look at the parameters, stacked on axis 0."""
    params, trained, _ = walk(inner, steps)
    return {name: np.diff(points, axis=0, prepend=params[name][None]) for name, points in trained.items()}


def assert_equal_trees(ours: Any, expected: Any, rtol: float = 1e-12) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14), ours, expected)


def descend(
    tx: optax.GradientTransformation, start: Array, curvature: Array, noise: Array
) -> tuple[Array, optax.OptState, Array]:
    """Parameters and state at the end, and the weights to evaluate after each step, on 1/2 curvature (p - noise)^2."""

    def step(carry: Any, e: Array) -> tuple[Any, Array]:
        params, state = carry
        updates, state = tx.update(curvature * (params - e), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), zoo.eval_params(state, params)

    (params, state), evaluated = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), noise))()
    return params, state, evaluated


def assert_float32_beside_bfloat16(tx: optax.GradientTransformation, field: str) -> None:
    """The average of bfloat16 parameters takes in steps that their dtype would lose; they themselves keep theirs."""
    params = jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    for i in range(6):
        updates, state = tx.update(jnp.full(3, 0.1 * (i + 1), jnp.bfloat16), state, params)
        params = optax.apply_updates(params, updates)
        assert updates.dtype == params.dtype == jnp.bfloat16
    average = getattr(state, field)
    assert average.dtype == jnp.float32
    assert not np.array_equal(average, average.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(zoo.eval_params(state, params), average.astype(jnp.bfloat16))


def assert_other_leaves_stay(tx: optax.GradientTransformation) -> None:
    """Integers and parameters without gradient are in the average as they are, and are not moved by a switch."""
    params = {"w": jnp.ones(2), "frozen": jnp.full(2, 7.0), "absent": None, "n": jnp.asarray(3)}
    gradients = {"w": jnp.ones(2), "frozen": None, "absent": None, "n": jnp.asarray(2)}
    state = tx.init(params)
    for count in range(1, 5):
        updates, state = tx.update(gradients, state, params)
        assert updates["frozen"] is None
        assert updates["n"] == 2
        params = optax.apply_updates(params, {**updates, "frozen": jnp.zeros(2)})
        evaluated = zoo.eval_params(state, params)
        assert evaluated["absent"] is None
        assert (evaluated["n"].dtype, int(evaluated["n"])) == (jnp.int32, 3 + 2 * count)
        np.testing.assert_array_equal(evaluated["frozen"], 7.0)
    assert not np.allclose(evaluated["w"], 1.0)


def only_w(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` for the leaf called w of the trees above."""
    return optax.masked(inner, lambda tree: {name: name == "w" for name in tree})
