"""SOAP: its equations transcribed, Adam without rotation, turns of the basis, and what is gained by it."""

import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

import optax_zoo as zoo
from optax_zoo._core.views import MatrixView
from optax_zoo.matrix._kronecker import merged
from optax_zoo.matrix.soap import scale_by_soap, soap
from tests.support import trajectory


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def walk(arguments: Any, gradients: Any, start: Any = 0.5, dtype: Any = jnp.float64) -> Any:
    """The parameters after each step of `soap`, float64."""
    with jax.enable_x64(True):
        gradients = jax.tree.map(lambda g: jnp.asarray(g, dtype), gradients)
        return trajectory(soap(**arguments), jax.tree.map(lambda g: jnp.full_like(g[0], start), gradients), gradients)[
            0
        ]


# The equations, one leaf at a time.


def along(matrices: Any, x: np.ndarray) -> np.ndarray:
    """A matrix, or None, for each axis."""
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def outer(g: np.ndarray, axis: int) -> np.ndarray:
    left = string.ascii_letters[: g.ndim]
    return np.einsum(f"{left},{left.replace(left[axis], 'Z')}->{left[axis]}Z", g, g)


def transcribed(
    gradients: np.ndarray,
    rotated: tuple[bool, ...],
    merged: tuple[int, ...] | None = None,
    learning_rate: float = 3e-3,
    b1: float = 0.95,
    b2: float = 0.95,
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    turns: Callable[[int], bool] = lambda t: t % 10 == 0,
    normalize_grads: bool = False,
    correct_bias: bool = True,
) -> np.ndarray:
    """The parameters after each step, from 0.5 on."""
    shape = gradients.shape[1:]
    s = b2 if shampoo_beta is None else shampoo_beta
    axes = [axis for axis, yes in enumerate(rotated) if yes]
    w, walked = np.full(shape, 0.5), []
    g = gradients[0].reshape(merged or shape)
    m, v = np.zeros_like(g), np.zeros_like(g)
    factors = [(1 - s) * outer(g, axis) for axis in axes]
    q: Any = [None] * g.ndim
    for axis, factor in zip(axes, factors, strict=True):
        q[axis] = np.linalg.eigh(factor)[1][:, ::-1]

    def into(x: np.ndarray) -> np.ndarray:
        return along([None if b is None else b.T for b in q], x)

    walked.append(w)
    for t, gradient in enumerate(gradients[1:], 1):
        g = gradient.reshape(g.shape)
        m = b1 * m + (1 - b1) * into(g)
        v = b2 * v + (1 - b2) * into(g) ** 2
        u = along(q, m / (np.sqrt(v) + eps)).reshape(shape)
        if normalize_grads:
            u = u / (np.sqrt(np.mean(u**2)) + 1e-30)
        rate = learning_rate * (np.sqrt(1 - b2**t) / (1 - b1**t) if correct_bias else 1.0)
        w = w - rate * u
        w = w - learning_rate * weight_decay * w
        walked.append(w)
        back = along(q, m)
        for k, axis in enumerate(axes):
            factors[k] = s * factors[k] + (1 - s) * outer(g, axis)
            if turns(t):
                image = factors[k] @ q[axis]
                order = np.argsort(-np.diag(q[axis].T @ image))
                v = np.take(v, order, axis)
                q[axis] = np.linalg.qr(image[:, order])[0]
        m = into(back)
    return np.stack(walked)


def test_is_the_equations_whatever_the_numbers() -> None:
    gradients = gaussian(25, 4, 4)

    @jax.jit
    def ours(numbers: dict[str, Any], every: Array, start: Array) -> Array:
        def step(carry: Any, g: Array) -> Any:
            params, state = carry
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        tx = soap(**numbers, precondition_frequency=lambda count: jnp.where(count < 5, 100, every))
        return jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(gradients))[1]

    defaults = {"learning_rate": 3e-3, "b1": 0.95, "b2": 0.95, "shampoo_beta": 0.95, "eps": 1e-8, "weight_decay": 0.01}
    for numbers in (
        {},
        {"b1": 0.8, "b2": 0.9, "shampoo_beta": 0.5, "eps": 1e-2},
        {"learning_rate": 0.1, "weight_decay": 0.3, "shampoo_beta": 0.0, "every": 1},
        {"learning_rate": 0.1, "b1": 0.1, "weight_decay": 0.0, "every": 3},
    ):
        given = {**defaults, **numbers}
        every = int(given.pop("every", 10))
        with jax.enable_x64(True):
            walked = ours(given, jnp.int32(every), jnp.full((4, 4), 0.5))
        expected = transcribed(gradients, (True, True), turns=lambda t, n=every: t >= 5 and t % n == 0, **given)
        np.testing.assert_allclose(walked, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "leaves"),
    [
        ({}, {(2, 3, 4): ((True, True, True), None), (5,): ((False,), None), (): ((), None)}),
        (
            {"max_precond_dim": 4, "normalize_grads": True, "correct_bias": False, "precondition_1d": True},
            {(3, 5): ((True, False), None), (5, 3): ((False, True), None), (5,): ((False,), None)},
        ),
        (
            {"max_precond_dim": 4, "merge_dims": True, "b2": 0.8},
            {(2, 2, 5): ((True, False), (4, 5)), (1, 4, 1, 6): ((True, False), (4, 6)), (5,): ((False,), None)},
        ),
    ],
)
def test_is_the_equations_whatever_the_shape(arguments: Any, leaves: Any) -> None:
    gradients = {str(shape): gaussian(15, *shape) for shape in leaves}
    ours = walk(arguments, gradients)
    flags = {name: value for name, value in arguments.items() if name in ("normalize_grads", "correct_bias", "b2")}
    for shape, (rotated, tensor) in leaves.items():
        expected = transcribed(gradients[str(shape)], rotated, tensor, **flags)
        np.testing.assert_allclose(ours[str(shape)], expected, rtol=1e-9, atol=1e-12, err_msg=str(shape))


@pytest.mark.parametrize(
    ("shape", "longest", "groups"),
    [
        ((64, 64, 3, 3), 10000, [4096, 9]),
        ((3, 3, 64, 64), 10000, [576, 64]),
        ((64, 64), 10000, [4096]),
        ((2, 20, 3), 10, [2, 20, 3]),
        ((20, 2, 3), 10, [20, 6]),
        ((3, 4, 5), 0, [3, 4, 5]),
        ((1, 20, 1, 5), 10, [20, 5]),
    ],
)
def test_neighbouring_axes_merge_as_long_as_they_fit(shape: Any, longest: int, groups: list[int]) -> None:
    assert merged(shape, longest) == tuple(groups)
    factors = scale_by_soap(merge_dims=True, max_precond_dim=longest).init(jnp.ones(shape, jnp.float32)).factors
    assert [len(factor) for factor in factors] == [n for n in groups if 1 < n <= longest]


def test_matrices_of_a_view_have_factors_of_their_own() -> None:
    gradients = gaussian(7, 5, 6)
    views = {"fused": MatrixView(split=2), "layers": MatrixView(1, 2, batch=0), "plain": "fallback"}
    leaves = {"fused": gradients, "layers": gradients.reshape(7, 5, 2, 3).transpose(0, 2, 1, 3), "plain": gradients}
    ours = walk({"precondition_frequency": 2, "dimension_numbers": views}, leaves)
    for i in range(2):
        alone = walk({"precondition_frequency": 2}, leaves["layers"][:, i])
        np.testing.assert_allclose(ours["layers"][:, i], alone, rtol=1e-9)
        np.testing.assert_allclose(ours["fused"][:, :, 3 * i : 3 * i + 3], alone, rtol=1e-9)
    np.testing.assert_allclose(ours["plain"], walk({"max_precond_dim": 0}, gradients), rtol=1e-9)


# What follows from them.


def eps_hat_adam(gradients: np.ndarray, b1: float, b2: float, eps: float) -> np.ndarray:
    """The sum of the directions up to each step; the first is skipped."""
    m, v, total, walked = 0.0, 0.0, np.zeros(gradients.shape[1:]), [np.zeros(gradients.shape[1:])]
    for t, g in enumerate(gradients[1:], 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        total = total + np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        walked.append(total)
    return np.stack(walked)


def test_without_rotation_it_is_adam_one_step_late() -> None:
    gradients = {"w": gaussian(12, 4, 3), "kernel": gaussian(12, 2, 2, 3, 2)}
    arguments = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.99, "eps": 0.1, "weight_decay": 0.0}
    ours = walk({**arguments, "max_precond_dim": 0}, gradients)
    for name, g in gradients.items():
        np.testing.assert_allclose(ours[name], 0.5 - 0.1 * eps_hat_adam(g, 0.9, 0.99, 0.1), rtol=1e-9)


def test_a_vector_that_is_rotated_is_adam_along_its_only_direction() -> None:
    heights, axis = gaussian(12), gaussian(5, seed=1)
    gradients = heights[:, None] * axis
    arguments = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "precondition_frequency": 3}
    norm = np.linalg.norm(axis)
    along_axis = eps_hat_adam(heights * norm, 0.9, 0.99, 1e-8)[:, None] * (axis / norm)
    ours = walk({**arguments, "precondition_1d": True}, gradients)
    np.testing.assert_allclose(ours, 0.5 - 0.1 * along_axis, rtol=1e-6)
    by_entry = 0.5 - 0.1 * eps_hat_adam(gradients, 0.9, 0.99, 1e-8)
    for more in ({}, {"precondition_1d": True, "max_precond_dim": 4}):
        np.testing.assert_allclose(walk({**arguments, **more}, gradients), by_entry, rtol=1e-9)


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(gaussian(n, n, seed=seed))[0]


def test_turns_with_the_gradients() -> None:
    left, right = orthogonal(4, 1), orthogonal(4, 2)
    gradients = gaussian(12, 4, 4)
    arguments = {"learning_rate": 0.1, "weight_decay": 0.0, "precondition_frequency": 3}
    moved = walk(arguments, {"straight": gradients, "turned": left @ gradients @ right}, 0.0)
    np.testing.assert_allclose(moved["turned"], left @ moved["straight"] @ right, atol=1e-9)


def test_complex_leaves_are_named() -> None:
    with pytest.raises(TypeError, match=r"soap: params at \['w'\] is complex"):
        soap().init({"w": jnp.ones((2, 2), jnp.complex64)})


def test_the_signs_of_eigenvectors_do_not_matter() -> None:
    g = jnp.asarray(gaussian(4, 4), jnp.float32)
    tx = scale_by_soap(precondition_frequency=4)
    update = jax.jit(tx.update)
    state = tx.init(g)
    for i in range(4):
        _, state = update(jnp.roll(g, i), state)
    left, right = jnp.array([1.0, -1, -1, 1]), jnp.array([-1.0, -1, 1, -1])
    q_left, q_right = state.bases
    flipped = state._replace(
        bases=(q_left * left[None, :], q_right * right[None, :]), m=state.m * left[:, None] * right[None, :]
    )
    for _ in range(3):
        (u, state), (of_flipped, flipped) = update(g, state), update(g, flipped)
        np.testing.assert_allclose(of_flipped, u, atol=1e-5)


def test_bases_turn_only_when_due_and_diagonalize_the_factors_in_the_end() -> None:
    turning, still = np.diag([1.0, 0.1, 0.01]), orthogonal(3, 3)
    g = jnp.asarray(still @ turning @ orthogonal(3, 4), jnp.float32)
    tx = scale_by_soap(precondition_frequency=3)
    state = tx.init(g)
    update = jax.jit(tx.update)
    for t in range(10):
        before = state.bases
        _, state = update(g, state)
        changed = not all(map(np.array_equal, before, state.bases))
        assert changed == (t % 3 == 0), t
    for factor, q in zip(state.factors, state.bases, strict=True):
        inside = np.asarray(q.T @ factor @ q)
        np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-6)
        assert (np.diff(np.diag(inside)) < 0).all()
        np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-6)


def test_the_first_step_neither_moves_nor_decays_and_counts_for_schedules() -> None:
    gradients = gaussian(4, 3, 3)
    arguments = {"weight_decay": 1.0, "max_precond_dim": 0}
    ours = walk({**arguments, "learning_rate": lambda count: jnp.where(count == 1, 0.1, 0.0)}, gradients)
    np.testing.assert_array_equal(ours[0], np.full((3, 3), 0.5))
    moved = transcribed(gradients[:2], (False, False), learning_rate=0.1, weight_decay=1.0)[1]
    np.testing.assert_allclose(ours[1:], np.stack([moved] * 3))
    leaves = {"decays": np.zeros((4, 3)), "stays": np.zeros((4, 3))}
    at_rest = walk({**arguments, "learning_rate": 0.1, "mask": {"decays": True, "stays": False}}, leaves)
    np.testing.assert_allclose(at_rest["decays"][:, 0], 0.5 * 0.9 ** np.arange(4), rtol=1e-12)
    np.testing.assert_array_equal(at_rest["stays"], np.full((4, 3), 0.5))


def test_beats_adam_where_directions_are_correlated() -> None:
    """Each at its best rate; the curvatures of the quadratic span a factor of 1e8, along directions that are turned."""
    left, right = (jnp.asarray(orthogonal(6, seed), jnp.float32) for seed in (1, 2))
    scales = jnp.logspace(-1, 1, 6)
    start = jnp.asarray(gaussian(6, 6, seed=3), jnp.float32)
    steps = 300

    def loss(x: Array) -> Array:
        return 0.5 * jnp.sum(jnp.square(scales[:, None] * (left.T @ x @ right) * scales[None, :]))

    def best(**arguments: Any) -> float:
        def final(rate: Array) -> Array:
            tx = soap(lambda count: rate * (1 - count / steps), weight_decay=0.0, **arguments)

            def step(carry: Any, _: None) -> Any:
                x, state = carry
                u, state = tx.update(jax.grad(loss)(x), state, x)
                return (optax.apply_updates(x, u), state), None

            return loss(jax.lax.scan(step, (start, tx.init(start)), length=steps)[0][0])

        return float(jnp.min(jax.jit(jax.vmap(final))(jnp.logspace(-3, 0, 10))))

    assert best(precondition_frequency=5) < 0.01 * best(max_precond_dim=0)


def test_shampoo_without_accumulation_is_the_polar_factor() -> None:
    g = gaussian(4, 4)

    def root(x: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(x)
        return vectors @ np.diag(values**-0.25) @ vectors.T

    with jax.enable_x64(True):
        polar = zoo.orthogonalize(jnp.asarray(g), method="svd")
    np.testing.assert_allclose(root(g @ g.T) @ g @ root(g.T @ g), polar, atol=1e-9)
