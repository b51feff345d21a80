import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from optax_zoo._core.views import MatrixView
from optax_zoo.matrix._eigenbases import eigenbasis
from optax_zoo.matrix.soap import merged, scale_by_soap, soap
from tests.support import trajectory

P = PartitionSpec


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


# Factors without full rank, and other hard cases.


def test_rounding_errors_do_not_choose_the_null_space() -> None:
    """Gradients that differ by rounding errors give the same trajectories."""
    arguments = {"precondition_frequency": 2, "precondition_1d": True, "max_precond_dim": 8, "weight_decay": 0.0}
    shapes = {"tall": (8, 3), "kernel": (2, 8, 2), "vector": (6,)}
    gradients = {name: gaussian(7, *shape) for name, shape in shapes.items()}
    perturbed = {name: g * (1 + 1e-14 * gaussian(*g.shape, seed=1)) for name, g in gradients.items()}
    moved = walk(arguments, {"as they are": gradients, "perturbed": perturbed}, 0.0)
    for name, ours in moved["as they are"].items():
        np.testing.assert_allclose(moved["perturbed"][name], ours, atol=1e-8 * np.abs(ours).max(), err_msg=name)


def test_the_null_space_stays_where_it_was() -> None:
    g = jnp.zeros((4, 3)).at[1, 2].set(1.0)
    tx = scale_by_soap(precondition_frequency=1)
    update = jax.jit(tx.update)
    state = tx.init(g)
    for i in range(3):
        before = state.bases
        _, state = update(g, state)
        if i:
            for q, old in zip(state.bases, before, strict=True):
                np.testing.assert_allclose(jnp.abs(q), jnp.abs(old), atol=1e-6)


@pytest.mark.parametrize("normalize_grads", [False, True])
def test_any_scale_is_finite_and_of_the_size_of_adam(normalize_grads: bool) -> None:
    shapes = {"tall": (6, 2), "one": (1, 1), "vector": (5,)}
    tx = scale_by_soap(precondition_frequency=2, normalize_grads=normalize_grads)
    update = jax.jit(tx.update)
    for scale in (0.0, 1e-30, 1e-20, 1e-6, 1e6, 1e15):
        gradients = {name: jnp.asarray(scale * gaussian(*shape), jnp.float32) for name, shape in shapes.items()}
        gradients["tall"] = gradients["tall"].at[:3].set(0.0)
        state = tx.init(gradients)
        for _ in range(5):
            u, state = update(gradients, state)
            for leaf in jax.tree.leaves((u, state)):
                assert jnp.isfinite(leaf).all(), scale
            most = 4.5 * 12**0.5 if normalize_grads else 8
            assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(u)) < most, scale
        for q in jax.tree.leaves(state.bases):
            np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-5)


def test_nan_stays_in_its_leaf() -> None:
    clean = {"a": jnp.asarray(gaussian(3, 3), jnp.float32), "b": jnp.asarray(gaussian(3, 3, seed=1), jnp.float32)}
    tx = scale_by_soap(precondition_frequency=1)
    states = [tx.init(clean)] * 2
    update = jax.jit(tx.update)
    for _ in range(3):
        u, states[0] = update(clean, states[0])
        hit, states[1] = update({**clean, "a": clean["a"].at[0, 0].set(jnp.nan)}, states[1])
        np.testing.assert_array_equal(hit["b"], u["b"])


def test_an_eigenbasis_starts_with_the_largest_eigenvalue() -> None:
    x = gaussian(5, 2)
    factor = jnp.asarray(x @ x.T, jnp.float32)
    q = np.asarray(eigenbasis(factor))
    values = np.diag(q.T @ x @ x.T @ q)
    assert values[0] > values[1] > 1e-3
    np.testing.assert_allclose(values[2:], 0, atol=1e-5)


def primitives_outside_of_conditions(jaxpr: Jaxpr) -> set[str]:
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        if equation.primitive.name not in ("cond", "while"):
            for value in equation.params.values():
                if isinstance(value, ClosedJaxpr):
                    found |= primitives_outside_of_conditions(value.jaxpr)
                elif isinstance(value, Jaxpr):
                    found |= primitives_outside_of_conditions(value)
    return found


def test_steps_between_turns_decompose_nothing() -> None:
    tx = scale_by_soap()
    g = jnp.ones((3, 3))
    jaxpr = jax.make_jaxpr(lambda g, state: tx.update(g, state))(g, tx.init(g))
    outside = primitives_outside_of_conditions(jaxpr.jaxpr)
    assert {"dot_general", "while"} <= outside
    assert not outside & {"eigh", "qr", "geqrf", "householder_product", "svd", "sort"}


def test_derivatives_of_steps_are_finite() -> None:
    tx = scale_by_soap(precondition_frequency=1, max_precond_dim=2)

    def after(scale: Array) -> Array:
        def step(carry: Any, g: Array) -> Any:
            total, state = carry
            u, state = tx.update(scale * g, state)
            return (total + u, state), None

        start = jnp.zeros((2, 3))
        gradients = jnp.asarray(gaussian(4, 2, 3), jnp.float32)
        return jnp.sum(jax.lax.scan(step, (start, tx.init(start)), gradients)[0][0])

    backwards, forwards = jax.jit(lambda x: (jax.grad(after)(x), jax.jvp(after, (x,), (jnp.ones(()),))[1]))(1.0)
    assert jnp.isfinite(backwards)
    np.testing.assert_allclose(backwards, forwards, atol=1e-4)


# Devices.


@pytest.mark.parametrize(
    ("check_vma", "arguments", "leaves", "factors_are_cut"),
    [
        (True, {"normalize_grads": True}, {"matrix": ((4, 8), P("a", "b")), "long": ((24, 4), P("b", "a"))}, True),
        (
            False,
            {"merge_dims": True, "precondition_1d": True},
            {"kernel": ((2, 4, 20), P("a", "b", None)), "bias": ((4,), P("b"))},
            False,
        ),
    ],
)
def test_sharded_leaves_equal_the_single_device(
    check_vma: bool, arguments: Any, leaves: Any, factors_are_cut: bool
) -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    specs = {name: spec for name, (_, spec) in leaves.items()}
    tx = scale_by_soap(precondition_frequency=2, max_precond_dim=16, **arguments)

    def gradients(seed: int) -> dict[str, Array]:
        return {name: jnp.asarray(gaussian(*shape, seed=seed), jnp.float32) for name, (shape, _) in leaves.items()}

    state = tx.init(gradients(0))
    of_axes: Any = jax.tree.map(lambda _: P(), state.factors)
    if factors_are_cut:
        of_axes["matrix"] = (P("a"), P("b"))
    over_state = state._replace(count=P(), m=specs, v=specs, factors=of_axes, bases=of_axes)

    def step(g: Any, state: Any) -> Any:
        return tx.update(g, state, param_specs=specs)

    over = (specs, over_state)
    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=over, out_specs=over, check_vma=check_vma))
    alone, single = state, jax.jit(step)
    for i in range(4):
        ours, state = sharded(gradients(i), state)
        expected, alone = single(gradients(i), alone)
        for name in leaves:
            np.testing.assert_allclose(ours[name], expected[name], atol=2e-4, err_msg=name)


def test_a_block_without_its_spec_or_with_a_state_of_blocks_is_named() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tx = scale_by_soap()
    whole = {"w": jnp.ones((16, 4))}
    replicated = jax.tree.map(lambda _: P(), tx.init(whole))._replace(m={"w": P("data")}, v={"w": P("data")})

    def run(step: Any, state_specs: Any) -> None:
        specs = (P("data"), state_specs) if state_specs is not None else P("data")
        arguments = (whole, tx.init(whole)) if state_specs is not None else (whole,)
        jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P("data"))(*arguments)

    with pytest.raises(ValueError, match=r"soap: a leaf of shape \(2, 4\) .* mesh axis 'data'.*param_specs"):
        run(lambda g, state: tx.update(g, state)[0], replicated)
    with pytest.raises(ValueError, match=r"soap: a leaf of shape \(2, 4\) needs factors of the shapes \(\(16, 16\), "):
        run(lambda g: tx.update(g, tx.init(g), param_specs=P("data"))[0], None)


def test_a_state_of_other_arguments_is_named() -> None:
    g = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"soap: a leaf of shape \(4, 3\) needs factors of the shapes \(\(4, 4\), "):
        scale_by_soap().update(g, scale_by_soap(max_precond_dim=3).init(g))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"b1": 1.0}, ValueError, r"soap: b1 must be in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, ValueError, r"soap: b2 must be in \[0, 1\), got -0.1"),
        ({"shampoo_beta": 1.0}, ValueError, r"soap: shampoo_beta must be in \[0, 1\), got 1.0"),
        ({"eps": -1.0}, ValueError, r"soap: eps must be in"),
        ({"weight_decay": -1.0}, ValueError, r"soap: weight_decay must be in \[0, inf\), got -1.0"),
        ({"precondition_frequency": 0}, ValueError, r"soap: precondition_frequency must be in \[1, inf\), got 0"),
        ({"precondition_frequency": 2.5}, ValueError, "soap: precondition_frequency must be a whole number, got 2.5"),
        ({"max_precond_dim": -1}, ValueError, r"soap: max_precond_dim must be in \[0, inf\), got -1"),
        ({"max_precond_dim": 2.5}, TypeError, "soap: max_precond_dim must be an integer, got 2.5"),
        ({"max_precond_dim": None}, TypeError, "soap: max_precond_dim must be a number.*, got None"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{sentence}"):
        soap(**arguments)


def test_a_length_that_is_injected_is_named() -> None:
    with pytest.raises(TypeError, match=r"soap: max_precond_dim must be known .* static_args"):
        optax.inject_hyperparams(soap)(learning_rate=0.1, max_precond_dim=5).init(jnp.ones((3, 3)))
    tx = optax.inject_hyperparams(soap, static_args="max_precond_dim")(learning_rate=0.1, max_precond_dim=2)
    assert optax.tree.get(tx.init(jnp.ones((3, 3))), "factors") == ()
