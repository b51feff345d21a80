"""SOAP where factors have no rank, at any scale, on several devices and under bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optax_zoo.matrix._eigenbases import eigenbasis
from optax_zoo.matrix.soap import scale_by_soap, soap
from tests.papers.matrix.test_soap import gaussian, walk

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
        ({"max_precond_dim": np.array(-1)}, ValueError, r"soap: max_precond_dim must be in \[0, inf\), got -1"),
        ({"max_precond_dim": np.array(2.5)}, TypeError, "soap: max_precond_dim must be an integer, got array"),
        ({"max_precond_dim": True}, TypeError, "soap: max_precond_dim must be an integer, got True"),
        ({"max_precond_dim": None}, TypeError, "soap: max_precond_dim must be an integer, got None"),
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
