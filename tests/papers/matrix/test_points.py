"""Which leaves hold points, what the state keeps of them, and points that do not fit or are cut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo


def kept(tx: optax.GradientTransformation, params: Any, field: str) -> Any:
    """The shapes of a field of the state."""
    return jax.tree.map(jnp.shape, optax.tree.get(jax.eval_shape(tx.init, params), field))


def test_state_holds_one_number_a_point_and_one_an_entry_of_flat_leaves() -> None:
    params = {name: jnp.ones((4, 6)) for name in ("ball", "flat", "product")}
    product = zoo.Product([(zoo.PoincareBall(), 3), (zoo.Sphere(), 2), (zoo.Euclidean(), 1)])
    manifolds = {"ball": zoo.PoincareBall(), "flat": zoo.Euclidean(), "product": product}
    expected = {"ball": (4, 1), "flat": (4, 6), "product": (4, 3)}
    assert kept(zoo.riemannian_adam(0.1, manifolds=manifolds), params, "v") == expected
    assert kept(zoo.riemannian_amsgrad(0.1, manifolds=manifolds), params, "vmax") == expected
    assert kept(zoo.riemannian_adagrad(0.1, manifolds=manifolds), params, "a") == expected
    assert optax.tree.get(zoo.riemannian_adam(manifolds=zoo.Sphere()).init(params), "vmax") is None


def test_manifolds_may_be_chosen_by_path_by_prefix_or_by_rank() -> None:
    params = {"embed": {"items": jnp.full((4, 2), 0.3), "bias": jnp.full(2, 0.3)}, "head": jnp.full((2, 2), 0.3)}
    ball = zoo.PoincareBall()
    forms = [
        lambda path, leaf: ball if path == "embed/items" else zoo.Euclidean(),
        {"embed": zoo.RowsOn(ball), "head": zoo.Euclidean()},
        {"embed": {"items": ball, "bias": zoo.Euclidean()}, "head": zoo.Euclidean()},
        lambda tree: {"embed": zoo.RowsOn(ball), "head": zoo.Euclidean()},
    ]
    for form in forms:
        shapes = kept(zoo.riemannian_adam(manifolds=form), params, "v")
        assert shapes == {"embed": {"items": (4, 1), "bias": (2,)}, "head": (2, 2)}
    shapes = kept(zoo.riemannian_adam(manifolds=zoo.RowsOn(ball)), params, "v")
    assert shapes == {"embed": {"items": (4, 1), "bias": (2,)}, "head": (2, 1)}


@pytest.mark.parametrize(
    ("manifolds", "leaf", "sentence"),
    [
        ("ball", np.ones((2, 3)), "manifolds must hold a manifold such as PoincareBall.*, got 'ball'"),
        (zoo.Sphere, np.ones((2, 3)), "manifolds must hold a manifold .*, got <class"),
        ({"w": None}, np.ones((2, 3)), "manifolds must hold a manifold .*, got None"),
        (lambda path, leaf: 3, np.ones((2, 3)), r"the leaf at \['w'\] needs a manifold .*, got 3"),
        ({"v": zoo.Sphere()}, np.ones((2, 3)), r"manifolds has no entry for the leaf at \['w'\]"),
        (zoo.Sphere(), np.ones(()), r"the leaf at \['w'\] is a scalar, and points of Sphere"),
        (zoo.Sphere(), np.ones((2, 1)), r"the leaf at \['w'\] has a last axis of size 1, and the sphere needs 2"),
        (
            zoo.Product([(zoo.Sphere(), 2), (zoo.Euclidean(), 2)]),
            np.ones((2, 3)),
            r"the leaf at \['w'\] has a last axis of size 3, and the factors of its Product, \[2, 2\], add up to 4",
        ),
        (zoo.Sphere(), np.eye(3)[:, :2], r"row 2 of params at \['w'\] has no single nearest point on Sphere"),
        (zoo.Sphere(), np.zeros(3), r"params at \['w'\] has no single nearest point on Sphere"),
        (zoo.PoincareBall(), np.ones((2, 3), np.complex64), r"params at \['w'\] is complex"),
    ],
)
@pytest.mark.parametrize("make", [zoo.riemannian_adam, zoo.riemannian_adagrad])
def test_what_does_not_fit_is_refused(make: Any, manifolds: Any, leaf: np.ndarray, sentence: str) -> None:
    params = {"w": jnp.asarray(leaf, None if np.iscomplexobj(leaf) else jnp.float32)}
    with pytest.raises((TypeError, ValueError), match=f"^{make.__name__}: {sentence}"):
        make(0.1, manifolds=manifolds).init(params)


def test_a_zero_row_that_is_not_known_in_time_leaves_along_its_gradient() -> None:
    tx = zoo.riemannian_adam(0.1, manifolds=zoo.Sphere())

    @jax.jit
    def step(p: Array, g: Array) -> Any:
        return optax.apply_updates(p, tx.update(g, tx.init(p), p)[0])

    np.testing.assert_allclose(step(jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]])), [[-0.6, -0.8]], rtol=1e-6)


def assert_right_on_four_devices(spec: PartitionSpec, kept: PartitionSpec, told: bool) -> None:
    """A step of a ball's points inside shard_map, with and without their PartitionSpecs."""
    tx: Any = zoo.riemannian_adam(0.1, manifolds=zoo.PoincareBall(exact=True))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    params = {"w": jnp.linspace(-0.4, 0.4, 32).reshape(8, 4)}
    state = tx.init(params)
    specs = state._replace(count=PartitionSpec(), m={"w": spec}, v={"w": kept})
    more = {"param_specs": {"w": spec}} if told else {}

    def update(p: Any, s: Any) -> Any:
        return tx.update(p, s, p, **more)[0]

    over = jax.shard_map(update, mesh=mesh, in_specs=({"w": spec}, specs), out_specs={"w": spec})
    np.testing.assert_allclose(jax.jit(over)(params, state)["w"], tx.update(params, state, params)[0]["w"], rtol=1e-5)


@pytest.mark.parametrize("told", [False, True])
def test_points_must_be_whole_inside_shard_map(told: bool) -> None:
    rows, columns, whole = PartitionSpec("data"), PartitionSpec(None, "data"), PartitionSpec()
    assert_right_on_four_devices(rows, rows, told)
    for spec, kept in ((columns, whole), (rows, whole)):
        with pytest.raises(ValueError, match=r"^riemannian_adam: the leaf at \['w'\] is cut along mesh axis 'data'"):
            assert_right_on_four_devices(spec, kept, told)
