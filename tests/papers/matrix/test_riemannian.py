"""Riemannian Adam, AMSGrad and AdaGrad: the sheet's equations, points stay on manifolds, flat limits, trees."""

import types
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

import optax_zoo as zoo
from tests.support import optax_trajectory, trajectory

STEPS = 9


# The equations in numpy: a manifold is its proj, proju, rgrad, squares, retract, transport and parallel transport.


def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum(x * y, axis=-1, keepdims=True)


def norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt(dot(x, x))


def flat() -> Any:
    return types.SimpleNamespace(
        proj=lambda x: x,
        proju=lambda x, u: u,
        rgrad=lambda x, g: g,
        squares=lambda x, u: u**2,
        retract=lambda x, u: x + u,
        transport=lambda x, y, v: v,
        parallel=lambda x, y, v: v,
    )


def ball(c: float, exact: bool) -> Any:
    def proj(x: np.ndarray) -> np.ndarray:
        most = (1 - 1e-5) / np.sqrt(c)
        return np.where(norm(x) > most, x / norm(x) * most, x)

    def lam(x: np.ndarray) -> np.ndarray:
        return 2 / (1 - c * dot(x, x))

    def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
        return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy)

    def exp(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        root = np.sqrt(c)
        return proj(add(x, np.tanh(root * lam(x) * norm(u) / 2) * u / (root * norm(u))))

    def gyr(u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        a = -(c**2) * dot(u, w) * dot(v, v) + c * dot(v, w) + 2 * c**2 * dot(u, v) * dot(v, w)
        b = -(c**2) * dot(v, w) * dot(u, u) - c * dot(u, w)
        return w + 2 * (a * u + b * v) / (1 + 2 * c * dot(u, v) + c**2 * dot(u, u) * dot(v, v))

    def transport(x: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
        return gyr(y, -x, v) * lam(x) / lam(y)

    return types.SimpleNamespace(
        proj=proj,
        proju=lambda x, u: u,
        rgrad=lambda x, g: g / lam(x) ** 2,
        squares=lambda x, u: lam(x) ** 2 * dot(u, u),
        retract=exp if exact else lambda x, u: proj(x + u),
        transport=transport,
        parallel=transport,
    )


def sphere(exact: bool) -> Any:
    def proju(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return u - dot(x, u) * x

    return types.SimpleNamespace(
        proj=lambda x: x / norm(x),
        proju=proju,
        rgrad=proju,
        squares=lambda x, u: dot(u, u),
        retract=(lambda x, u: x * np.cos(norm(u)) + u * np.sin(norm(u)) / norm(u))
        if exact
        else (lambda x, u: (x + u) / norm(x + u)),
        transport=lambda x, y, v: proju(y, v),
        parallel=lambda x, y, v: v - dot(y, v) / (1 + dot(x, y)) * (x + y),
    )


def adam(
    m: Any,
    p: np.ndarray,
    gradients: np.ndarray,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    amsgrad: bool = False,
    weight_decay: float = 0.0,
    stabilize: int | None = None,
    paper: bool = False,
) -> np.ndarray:
    walked, mean, v, most = [], np.zeros_like(p), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        x = m.proj(p)
        g = m.rgrad(x, gradient + weight_decay * x)
        mean = b1 * mean + (1 - b1) * g
        v = b2 * v + (1 - b2) * m.squares(x, g)
        most = np.maximum(most, v)
        bias1, bias2 = (1, 1) if paper else (1 - b1**t, 1 - b2**t)
        d = mean / bias1 / (np.sqrt((most if amsgrad or paper else v) / bias2) + eps)
        p = m.retract(x, -lr * d)
        mean = (m.parallel if paper else m.transport)(x, p, mean)
        if stabilize and t % stabilize == 0:
            p = m.proj(p)
            mean = m.proju(p, mean)
        walked.append(p)
    return np.stack(walked)


def adagrad(m: Any, p: np.ndarray, gradients: np.ndarray, lr: float, eps: float, initial: float) -> np.ndarray:
    walked, total = [], initial
    for gradient in gradients:
        x = m.proj(p)
        g = m.rgrad(x, gradient)
        total = total + m.squares(x, g)
        p = m.retract(x, -lr * g / (np.sqrt(total) + eps))
        walked.append(p)
    return np.stack(walked)


LEAVES: dict[str, tuple[zoo.Manifold, Any]] = {
    "ball": (zoo.PoincareBall(c=0.6), ball(0.6, False)),
    "exact ball": (zoo.PoincareBall(exact=True), ball(1.0, True)),
    "sphere": (zoo.Sphere(), sphere(False)),
    "exact sphere": (zoo.Sphere(exact=True), sphere(True)),
    "flat": (zoo.Euclidean(), flat()),
}
MANIFOLDS = {name: manifold for name, (manifold, _) in LEAVES.items()}
ADAM: dict[str, Any] = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}


def problem(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Points, some of them off their manifold, and gradients."""
    rng = np.random.default_rng(seed)
    points = {name: 0.6 * rng.normal(size=(2, 3, 3)) for name in LEAVES}
    return points, {name: rng.normal(size=(STEPS, 2, 3, 3)) for name in LEAVES}


def compare(make: Any, walk: Any, names: tuple[str, ...] = tuple(LEAVES)) -> None:
    points, gradients = ({name: tree[name] for name in names} for tree in problem())
    with jax.enable_x64(True):
        ours, _ = trajectory(make(manifolds={name: MANIFOLDS[name] for name in names}), points, gradients)
    for name in names:
        manifold = LEAVES[name][1]
        np.testing.assert_allclose(ours[name], walk(manifold, points[name], gradients[name]), rtol=1e-9, err_msg=name)


def test_adam_is_that_of_the_equations() -> None:
    compare(partial(zoo.riemannian_adam, 0.1, **ADAM), lambda m, p, g: adam(m, p, g, 0.1, **ADAM))


@pytest.mark.parametrize("flags", [{"amsgrad": True}, {"weight_decay": 0.3}, {"stabilize": 2}])
def test_every_flag_of_adam_is_that_of_the_equations(flags: dict[str, Any]) -> None:
    make = partial(zoo.riemannian_adam, 0.1, **ADAM, **flags)
    compare(make, lambda m, p, g: adam(m, p, g, 0.1, **ADAM, **flags), ("ball", "exact sphere"))


def test_amsgrad_is_that_of_the_equations() -> None:
    compare(partial(zoo.riemannian_amsgrad, 0.1, **ADAM), lambda m, p, g: adam(m, p, g, 0.1, **ADAM, paper=True))


@pytest.mark.parametrize(("eps", "initial"), [(0.0, 0.0), (0.1, 0.5)])
def test_adagrad_is_that_of_the_equations(eps: float, initial: float) -> None:
    make = partial(zoo.riemannian_adagrad, 0.3, eps=eps, initial_accumulator_value=initial)
    compare(make, lambda m, p, g: adagrad(m, p, g, 0.3, eps, initial), ("exact ball", "sphere", "flat"))


def test_a_product_is_its_factors_side_by_side() -> None:
    names = ["ball", "exact sphere", "flat"]
    points, gradients = ({name: tree[name] for name in names} for tree in problem())
    product = zoo.Product([(MANIFOLDS[name], 3) for name in names])
    with jax.enable_x64(True):
        apart, _ = trajectory(
            zoo.riemannian_amsgrad(0.1, manifolds={name: MANIFOLDS[name] for name in names}), points, gradients
        )
        joined = (np.concatenate([tree[name] for name in names], axis=-1) for tree in (points, gradients))
        together, _ = trajectory(zoo.riemannian_amsgrad(0.1, manifolds=product), *joined)
    np.testing.assert_allclose(together, np.concatenate([apart[name] for name in names], axis=-1), rtol=1e-10)


def test_on_flat_space_it_is_adam_and_adagrad() -> None:
    points, gradients = problem()
    start = {"initial_accumulator_value": 0.1}
    with jax.enable_x64(True):
        for ours, theirs in (
            (zoo.riemannian_adam(0.1, manifolds=zoo.Euclidean()), optax.adam(0.1)),
            (zoo.riemannian_adagrad(0.1, manifolds=zoo.Euclidean(), **start), optax.adagrad(0.1, eps=0.0, **start)),
        ):
            walked, expected = trajectory(ours, points, gradients)[0], optax_trajectory(theirs, points, gradients)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), walked, expected)


@pytest.mark.parametrize("exact", [False, True])
def test_without_curvature_it_is_adam_on_a_quarter_of_the_gradient_with_one_scalar_a_point(exact: bool) -> None:
    """lambda tends to 2: the gradient becomes g / 4 and its squared norm |g|^2 / 4."""
    rng = np.random.default_rng(0)
    x, gradients = rng.normal(size=(4, 3)), rng.normal(size=(STEPS, 4, 3))
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.riemannian_adam(0.1, manifolds=zoo.PoincareBall(1e-12, exact)), x, gradients)
    m, v = np.zeros((4, 3)), np.zeros((4, 1))
    for t, g in enumerate(gradients / 4, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * 4 * np.sum(g * g, axis=-1, keepdims=True)
        x = x - 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(ours[t - 1], x, rtol=1e-7)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (jnp.bfloat16, 1e-2)])
def test_points_stay_on_their_manifolds(dtype: Any, rtol: float) -> None:
    """Also those that started off them, at rates that drive them to the boundary."""
    with jax.enable_x64(True):
        points, gradients = (jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in problem())
        ours, _ = trajectory(zoo.riemannian_adam(3.0, manifolds=MANIFOLDS), points, gradients)
    lengths = {name: np.linalg.norm(np.asarray(x, np.float64), axis=-1) for name, x in ours.items()}
    margin = 1e-5 if dtype == np.float64 else 4e-3
    for name in ("sphere", "exact sphere"):
        np.testing.assert_allclose(lengths[name], 1.0, rtol=rtol)
    for name, c in (("ball", 0.6), ("exact ball", 1.0)):
        assert (np.sqrt(c) * lengths[name] <= (1 - margin) * (1 + rtol)).all()
        assert (np.sqrt(c) * lengths[name] > 1 - 2 * margin - rtol).any()


@pytest.mark.parametrize("make", [zoo.riemannian_adam, zoo.riemannian_adagrad])
def test_steps_without_momentum_are_as_long_as_the_rate_in_the_metric(make: Any) -> None:
    """On the first step, whatever the scale of a point's gradient; along the geodesic where the maps are exact."""
    points, gradients = problem()
    with jax.enable_x64(True):
        names = ("exact ball", "exact sphere")
        before = {name: MANIFOLDS[name].proj(jnp.asarray(0.3 * points[name])) for name in names}
        tx = make(0.1, eps=0.0, manifolds={name: MANIFOLDS[name] for name in names})
        after, _ = trajectory(tx, before, {name: gradients[name][:1] * 1e-3 for name in names})
        for name in names:
            moved = MANIFOLDS[name].dist(before[name], jnp.asarray(after[name][0]))
            np.testing.assert_allclose(moved, 0.1, rtol=1e-9)


class Loose(zoo.Sphere):
    """A sphere whose steps leave it, as a user may write one."""

    def retract(self, x: Array, u: Array) -> Array:
        return x + u

    def transport(self, x: Array, y: Array, v: Array) -> Array:
        return v


@pytest.mark.parametrize("wrap", [lambda every: every, jnp.int32])
def test_stabilizing_projects_points_and_momentum_every_so_many_steps(wrap: Any) -> None:
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    p = p / jnp.linalg.norm(p, axis=-1, keepdims=True)
    tx = zoo.riemannian_adam(0.3, manifolds=Loose(), stabilize=wrap(3))
    update = jax.jit(tx.update)
    state: Any = tx.init(p)
    for t in range(1, 7):
        u, state = update(jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), state, p)
        p = p + u
        off = np.abs(np.linalg.norm(p, axis=-1) - 1)
        radial = np.abs(np.sum(np.asarray(state.m) * p, axis=-1))
        assert (off < 1e-6).all() == (radial < 1e-6).all() == (t % 3 == 0)


@pytest.mark.parametrize("make", [zoo.riemannian_adam, zoo.riemannian_adagrad])
def test_without_gradient_and_eps_points_rest(make: Any) -> None:
    points, gradients = problem()
    manifolds = {name: MANIFOLDS[name] for name in ("exact ball", "sphere")}
    on = {name: np.asarray(manifold.proj(jnp.asarray(points[name]))) for name, manifold in manifolds.items()}
    still = {name: np.zeros_like(gradients[name], np.float32) for name in manifolds}
    rested, _ = trajectory(make(1.0, manifolds=manifolds, eps=0.0), on, still)
    jax.tree.map(lambda walked, x: np.testing.assert_allclose(walked[-1], x, rtol=1e-6), rested, on)


def tree_distances(nodes: int) -> np.ndarray:
    """Edges between the nodes of a binary tree, numbered row by row."""

    def between(i: int, j: int) -> float:
        return 0.0 if i == j else 1.0 + between(*sorted(((max(i, j) - 1) // 2, min(i, j))))

    return np.array([[between(i, j) for i in range(nodes)] for j in range(nodes)])


def test_a_tree_fits_into_a_ball_with_less_distortion_than_into_a_plane() -> None:
    """A binary tree of depth 4 in two dimensions, each space with its own best rate, from three starts.

    The distortion is the average error of distances relative to those in the tree.
    """
    edges, steps = tree_distances(31), 400

    def errors(manifold: zoo.Manifold, points: Array) -> Array:
        distances = manifold.dist(points[:, None], points[None])
        return jnp.where(edges > 0, distances / np.maximum(edges, 1.0) - 1.0, 0.0)

    def distortion(manifold: zoo.Manifold, rate: Array, seed: Array) -> Array:
        tx = zoo.riemannian_adam(rate, b2=0.9, manifolds=manifold)
        start = 1e-3 * jax.random.normal(jax.random.key(seed), (len(edges), 2), float)

        def step(carry: Any, _: None) -> Any:
            points, state = carry
            gradient = jax.grad(lambda at: jnp.sum(jnp.square(errors(manifold, at))))(points)
            updates, state = tx.update(gradient, state, points)
            return (optax.apply_updates(points, updates), state), None

        (points, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=steps)
        return jnp.sum(jnp.abs(errors(manifold, points))) / int((edges > 0).sum())

    with jax.enable_x64(True):
        rates, seeds = jnp.array([0.1, 0.5, 2.0]), jnp.arange(3)
        ball, plane = (
            np.asarray(jax.jit(jax.vmap(jax.vmap(distort, (0, None)), (None, 0)))(rates, seeds)).min(axis=1)
            for distort in (partial(distortion, manifold) for manifold in (zoo.PoincareBall(), zoo.Euclidean()))
        )
    assert ball.max() < 0.8 * plane.min()
    assert ball.mean() < 0.6 * plane.mean()
