"""Manifolds: metric, geodesics and transport fit together, gyrovectors obey their laws, bad arguments are told."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import optax_zoo as zoo

N = 4
CURVED = [
    zoo.PoincareBall(),
    zoo.PoincareBall(c=0.3, exact=True),
    zoo.Sphere(exact=True),
    zoo.Product([(zoo.PoincareBall(c=2.0), 2), (zoo.Sphere(), 2)]),
    zoo.Product([(zoo.Product([(zoo.Euclidean(), 1), (zoo.Sphere(), 2)]), 3), (zoo.Euclidean(), 1)]),
]
MANIFOLDS = [zoo.Euclidean(), *CURVED]
BALL = zoo.PoincareBall(c=0.7)
LOOSE: Any = zoo
"""To be given arguments of the wrong types."""


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(seed: int, scale: float = 1.0) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(20, N)) * scale)


def point(manifold: zoo.Manifold, seed: int) -> Array:
    return manifold.proj(normal(seed, 0.15))


def tangent(manifold: zoo.Manifold, x: Array, seed: int) -> Array:
    return manifold.proju(x, normal(seed, 0.3))


def length(manifold: zoo.Manifold, x: Array, u: Array) -> Array:
    return jnp.sqrt(manifold.inner(x, u, u))


def close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_metric_geodesics_and_transport_fit_together(manifold: zoo.Manifold) -> None:
    m = manifold

    @jax.jit
    def identities() -> dict[str, tuple[Array, Array]]:
        x, y = point(m, 0), point(m, 1)
        u, v, g = tangent(m, x, 2), tangent(m, x, 3), normal(4)
        way, end = m.logmap(x, y), m.expmap(x, u)
        ahead = m.parallel_transport(x, y, u)
        return {
            "the gradient represents the differential": (m.inner(x, m.egrad2rgrad(x, g), u), jnp.sum(g * u, axis=-1)),
            "the way leads there": (m.expmap(x, way), y),
            "the way leads back": (m.logmap(x, end), u),
            "the way is as long as the distance": (length(m, x, way), m.dist(x, y)),
            "the distance is as long as the way": (m.dist(x, end), length(m, x, u)),
            "the way is tangent": (m.proju(x, way), way),
            "distances are symmetric": (m.dist(x, y), m.dist(y, x)),
            "no way leads nowhere": (m.expmap(x, jnp.zeros_like(x)), x),
            "transport keeps inner products": (m.inner(y, ahead, m.parallel_transport(x, y, v)), m.inner(x, u, v)),
            "transported vectors are tangent": (m.proju(y, ahead), ahead),
            "transport comes back": (m.parallel_transport(y, x, ahead), u),
            "a geodesic transports its velocity": (m.parallel_transport(x, y, way), -m.logmap(y, x)),
            "transport is tangent": (m.proju(y, m.transport(x, y, u)), m.transport(x, y, u)),
        }

    for identity, (actual, expected) in identities().items():
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-10, err_msg=identity)


@pytest.mark.parametrize("manifold", CURVED, ids=str)
def test_a_retraction_is_the_exponential_map_to_first_order(manifold: zoo.Manifold) -> None:
    @jax.jit
    def apart(t: float) -> Array:
        x = point(manifold, 0)
        u = tangent(manifold, x, 1)
        return jnp.linalg.norm(manifold.retract(x, t * u) - manifold.expmap(x, t * u))

    assert apart(1e-2) < 1e-3
    assert apart(1e-3) < 0.011 * apart(1e-2) + 1e-15


def test_exact_retractions_are_the_exponential_map() -> None:
    @jax.jit
    def twice(x: Array, u: Array) -> list[tuple[Array, Array]]:
        pairs = [(kind(exact=True), kind()) for kind in (zoo.PoincareBall, zoo.Sphere)]
        exactly = [(exact.retract(x, u), loose.expmap(x, u)) for exact, loose in pairs]
        return exactly + [(loose.retract(x, u), loose.proj(x + u)) for _, loose in pairs]

    for ours, expected in twice(normal(0, 0.15), normal(1, 0.3)):
        np.testing.assert_array_equal(ours, expected)


def test_gyrovectors_obey_their_laws() -> None:
    a, b, w = point(BALL, 0), point(BALL, 1), point(BALL, 2)
    add, gyr = jax.jit(BALL.mobius_add), jax.jit(BALL.gyration)
    close(add(-a, add(a, b)), b)  # left cancellation
    close(add(a, jnp.zeros_like(a)), a)
    close(add(a, b), gyr(a, b, add(b, a)))  # gyrocommutativity
    close(add(a, add(b, w)), add(add(a, b), gyr(a, b, w)))  # gyroassociativity
    close(gyr(a, b, w), add(-add(a, b), add(a, add(b, w))))
    close(jnp.linalg.norm(gyr(a, b, w), axis=-1), jnp.linalg.norm(w, axis=-1))


def test_transport_on_the_ball_is_accurate_at_the_boundary() -> None:
    x, y = (BALL.proj(normal(seed, 100.0)) for seed in (0, 1))
    v = normal(2)
    close(length(BALL, y, BALL.transport(x, y, v)), length(BALL, x, v), rtol=1e-5)
    composed = BALL.mobius_add(-BALL.mobius_add(y, -x), BALL.mobius_add(y, BALL.mobius_add(-x, 0.1 * v)))
    assert float(jnp.max(jnp.abs(jnp.linalg.norm(composed, axis=-1) / jnp.linalg.norm(0.1 * v, axis=-1) - 1))) > 1e-4


def test_distances_on_the_ball_are_the_textbook_s() -> None:
    x, y = point(BALL, 0), point(BALL, 1)
    c, gap = BALL.c, jnp.sum(jnp.square(x - y), axis=-1)
    rooms = [1 - c * jnp.sum(jnp.square(z), axis=-1) for z in (x, y)]
    close(BALL.dist(x, y), jnp.arccosh(1 + 2 * c * gap / (rooms[0] * rooms[1])) / jnp.sqrt(c))
    close(zoo.PoincareBall(c=1e-12).dist(x, y), 2 * jnp.sqrt(gap))


def test_the_gradient_of_a_distance_is_finite_where_points_meet() -> None:
    @jax.jit
    def gradients() -> list[Array]:
        points = [(manifold, point(manifold, 0)) for manifold in MANIFOLDS]
        return [jax.grad(lambda x, y, m=m: jnp.sum(m.dist(x, y)))(x, x) for m, x in points]

    assert all(jnp.isfinite(gradient).all() for gradient in gradients())


@pytest.mark.parametrize(("dtype", "margin"), [(jnp.float64, 1e-5), (jnp.float32, 4e-3)])
def test_points_keep_a_margin_from_the_boundary_that_depends_on_the_dtype(dtype: Any, margin: float) -> None:
    ball = zoo.PoincareBall(c=4.0)
    x = ball.proj((10 * normal(0)).astype(dtype))
    assert x.dtype == dtype
    np.testing.assert_allclose(jnp.linalg.norm(x.astype(jnp.float64), axis=-1), (1 - margin) / 2, rtol=1e-6)
    inside = (0.01 * normal(0)).astype(dtype)
    np.testing.assert_array_equal(ball.proj(inside), inside)


def test_the_projection_as_transport_on_the_sphere_shortens_vectors() -> None:
    sphere = zoo.Sphere()
    x, y = point(sphere, 0), point(sphere, 1)
    v = tangent(sphere, x, 2)
    close(jnp.sum(sphere.transport(x, y, v) * y, axis=-1), np.zeros(20))
    assert (length(sphere, y, sphere.transport(x, y, v)) < length(sphere, x, v)).all()


def test_nothing_is_nan_at_zero_or_at_opposite_points() -> None:
    sphere, zero, (e, f) = zoo.Sphere(exact=True), jnp.zeros(2), jnp.eye(2)

    @jax.jit
    def at_the_edge() -> list[Array]:
        on_the_sphere = sphere.proj(zero), sphere.logmap(e, -e), sphere.parallel_transport(e, -e, f)
        return [*on_the_sphere, sphere.dist(e, -e), BALL.logmap(zero, zero), BALL.expmap(zero, zero)]

    results = at_the_edge()
    assert all(jnp.isfinite(result).all() for result in results)
    close(results[3], np.pi)


@pytest.mark.parametrize("angle", [0.0, 1.0, 3.1415, np.pi])
def test_parallel_transport_on_the_sphere_keeps_lengths_in_float32(angle: float) -> None:
    sphere = zoo.Sphere(exact=True)
    x = sphere.proj(normal(0).astype(jnp.float32))
    u = sphere.proj(sphere.proju(x, normal(1).astype(jnp.float32)))
    y = sphere.expmap(x, jnp.float32(angle) * u)
    v = sphere.proj(sphere.proju(x, normal(2).astype(jnp.float32)))
    moved = sphere.parallel_transport(x, y, v)
    lengths = jnp.linalg.norm(moved, axis=-1)
    np.testing.assert_allclose(jnp.sum(moved * y, axis=-1), 0.0, atol=2e-6)
    assert (lengths < 1 + 1e-5).all()
    if angle < np.pi:
        np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)


@pytest.mark.parametrize("manifold", [zoo.PoincareBall(), zoo.Sphere()])
def test_half_precision_has_no_nan_at_points_that_meet(manifold: zoo.Manifold) -> None:
    x = point(manifold, 0).astype(jnp.float16)
    for out in (manifold.expmap(x, jnp.zeros_like(x)), manifold.logmap(x, x), manifold.proj(200 * x)):
        assert out.dtype == jnp.float16 and jnp.isfinite(out).all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_projections_know_no_scale(scale: float) -> None:
    x = normal(0).astype(jnp.float32)
    np.testing.assert_allclose(zoo.Sphere().proj(jnp.float32(scale) * x), zoo.Sphere().proj(x), rtol=1e-6)
    inside = zoo.PoincareBall().proj(jnp.float32(1e25) * x)
    np.testing.assert_allclose(jnp.linalg.norm(inside, axis=-1), 0.996, rtol=1e-6)


@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_distances_from_nowhere_are_nan(manifold: zoo.Manifold) -> None:
    x = point(manifold, 0)
    assert jnp.isnan(manifold.dist(x.at[0, 0].set(jnp.nan), x)[0])


@pytest.mark.parametrize("manifold", CURVED)
def test_the_exponential_map_has_its_derivative_at_zero(manifold: zoo.Manifold) -> None:
    x = point(manifold, 0)
    u = manifold.proju(x, normal(1, 0.1))
    _, moved = jax.jvp(lambda u: manifold.expmap(x, u), (jnp.zeros_like(x),), (u,))
    np.testing.assert_allclose(moved, u, rtol=1e-10, atol=1e-12)


def test_a_product_has_a_step_size_for_each_curved_factor_and_each_flat_entry() -> None:
    ball = zoo.PoincareBall()
    product = zoo.Product([(ball, 2), (zoo.Euclidean(), 3), (zoo.Sphere(), 3)])
    rng = np.random.default_rng(0)
    x, u = 0.2 * jnp.asarray(rng.normal(size=(5, 8))), jnp.asarray(rng.normal(size=(5, 8)))
    squares = jax.jit(product.squares)(x, u)
    assert squares.shape == (5, product.width(8)) == (5, 5)
    close(squares[:, 0], ball.inner(x[:, :2], u[:, :2], u[:, :2]))
    close(squares[:, 1:4], jnp.square(u[:, 2:5]))
    close(squares[:, 4], jnp.sum(jnp.square(u[:, 5:]), axis=-1))
    np.testing.assert_array_equal(jax.jit(product.spread)(squares), squares[:, [0, 0, 1, 2, 3, 4, 4, 4]])
    close(jnp.sum(squares, axis=-1), jax.jit(product.inner)(x, u, u))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LOOSE.PoincareBall(0.0), r"PoincareBall: c must be in \(0, inf\), got 0.0"),
        (lambda: LOOSE.PoincareBall(c=-1), r"PoincareBall: c must be in \(0, inf\), got -1"),
        (lambda: LOOSE.PoincareBall(c=float("nan")), r"PoincareBall: c must be in \(0, inf\), got nan"),
        (lambda: LOOSE.PoincareBall(c=jnp.float32(1.0)), "PoincareBall: c must be a Python number, got Array"),
        (lambda: LOOSE.PoincareBall(c=1.0, exact=1), "PoincareBall: exact must be True or False, got 1"),
        (lambda: LOOSE.Sphere("yes"), "Sphere: exact must be True or False, got 'yes'"),
        (lambda: LOOSE.Product([]), "Product: factors must be a list of pairs"),
        (lambda: LOOSE.Product(zoo.Sphere()), "Product: factors must be a list of pairs"),
        (lambda: LOOSE.Product([zoo.Sphere()]), r"Product: a factor must be a pair \(manifold, size\), got Sphere"),
        (lambda: LOOSE.Product([(zoo.Sphere(), 2.5)]), r"Product: a factor must be a pair \(manifold, size\)"),
        (lambda: LOOSE.Product([(zoo.Sphere, 3)]), "Product: .* is no manifold such as Sphere"),
        (
            lambda: LOOSE.Product([(zoo.Euclidean(), 0)]),
            r"Product: the size of Euclidean\(\) must be at least 1, got 0",
        ),
        (lambda: LOOSE.Product([(zoo.Sphere(), 1)]), "Product: .* has size 1, and the sphere needs 2 or more"),
        (lambda: LOOSE.RowsOn(zoo.Sphere), "RowsOn: .* is no manifold such as PoincareBall"),
    ],
)
def test_bad_manifolds_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        make()


def test_manifolds_are_equal_when_their_numbers_are() -> None:
    assert len({zoo.PoincareBall(), zoo.PoincareBall(1), LOOSE.PoincareBall(c=np.float32(1.0))}) == 1
    assert zoo.Product([(zoo.Sphere(), 2)]) == LOOSE.Product(((zoo.Sphere(), np.int64(2)),))
    assert zoo.PoincareBall() != zoo.PoincareBall(exact=True)
