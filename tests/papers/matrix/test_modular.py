"""Budgets of composed modules: modula's recursion, and what it implies."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_zoo as zoo
from optax_zoo import ModularNorm, modular_atom, modular_bond

PARAMS = {name: jnp.ones((2, 2)) for name in "abcd"}


def assert_norms(module: ModularNorm, expected: dict[str, float], total: float = 1.0) -> None:
    ours = module.target_norms({name: PARAMS[name] for name in expected}, total)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-12), ours, expected)


def test_a_composition_is_that_of_the_recorded_results() -> None:
    assert_norms(modular_atom("b") @ modular_bond(2.0) @ modular_atom("a"), {"a": 0.25, "b": 0.5})


def test_equals_the_recursion_over_a_tree_of_modules() -> None:
    """As in modula: every node is told its norm by its parent."""
    tree: Any = (
        "@",
        ("atom", "d", 2.0, 0.5),
        ("+", ("@", ("bond", 3.0), ("atom", "c", 0.7, 1.5)), ("@", ("atom", "b", 1.1, 1.0), ("atom", "a", 0.0, 2.0))),
    )

    def mass(node: Any) -> float:
        return {"atom": lambda: node[2], "bond": lambda: 0.0}.get(node[0], lambda: mass(node[1]) + mass(node[2]))()

    def sensitivity(node: Any) -> float:
        if node[0] in ("atom", "bond"):
            return node[-1]
        both = sensitivity(node[1]), sensitivity(node[2])
        return both[0] * both[1] if node[0] == "@" else sum(both)

    def norms(node: Any, target: float) -> dict[str, float]:
        if node[0] in ("atom", "bond"):
            return {node[1]: target} if node[0] == "atom" else {}
        first, second = (target * mass(child) / mass(node) for child in node[1:])
        return norms(node[1], first) | norms(node[2], second / sensitivity(node[1]) if node[0] == "@" else second)

    def module(node: Any) -> ModularNorm:
        if node[0] == "atom":
            return modular_atom(*node[1:])
        if node[0] == "bond":
            return modular_bond(node[1])
        first, second = map(module, node[1:])
        return first @ second if node[0] == "@" else first + second

    ours = module(tree)
    np.testing.assert_allclose((ours.mass, ours.sensitivity), (mass(tree), sensitivity(tree)))
    assert_norms(ours, norms(tree, 3.0), 3.0)


def test_composition_and_sums_are_associative() -> None:
    a, b, c = modular_atom("a", 2.0, 3.0), modular_atom("b", 0.5, 0.7) @ modular_bond(4.0), modular_atom("c")
    for one, other in (((a @ b) @ c, a @ (b @ c)), ((a + b) + c, a + (b + c))):
        np.testing.assert_allclose((one.mass, one.sensitivity), (other.mass, other.sensitivity))
        assert_norms(one, other.target_norms({name: PARAMS[name] for name in "abc"}))


def test_the_output_moves_by_no_more_than_the_target_norm() -> None:
    """To first order, in a network whose weights and inputs have norm 1: what the budgets are for."""
    rng = np.random.default_rng(0)
    shapes = {"a": (5, 7), "b": (7, 6), "c": (6, 3)}
    module = modular_atom("c") @ modular_bond(3.0) @ modular_atom("b", mass=2.0) @ modular_bond(0.5) @ modular_atom("a")

    def dual(seed: int, target: Any) -> Any:
        tree = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        tx = zoo.dualize("linear", target_norm=target, method="svd")
        return tx.update(tree, tx.init(tree))[0]

    weights = dual(0, 1.0)
    target = 1e-3
    inputs = jnp.asarray(rng.normal(size=(50, 5)), jnp.float32)
    inputs /= jnp.sqrt(jnp.mean(inputs**2, axis=1, keepdims=True))

    def forward(w: Any) -> Any:
        return 3.0 * (0.5 * (inputs @ w["a"])) @ w["b"] @ w["c"]

    moved = 0.0
    for seed in range(1, 6):
        change = dual(seed, module.target_norms(weights, target))
        gap = forward(jax.tree.map(jnp.add, weights, change)) - forward(weights)
        moved = max(moved, float(jnp.max(jnp.sqrt(jnp.mean(gap**2, axis=1)))))
    assert 0.05 * target < moved < 1.01 * target


def test_masses_are_shares_and_can_be_set_together() -> None:
    block = modular_atom("b", 3.0) @ modular_atom("a")
    assert_norms(block, {"a": 0.25, "b": 0.75})
    assert_norms(modular_atom("c") + block.with_mass(1.0), {"a": 0.125, "b": 0.375, "c": 0.5})
    assert_norms(modular_atom("b", 0.0) @ modular_atom("a"), {"a": 1.0, "b": 0.0})
    assert_norms(modular_atom("b", 0.0) @ modular_atom("a", 0.0), {"a": 0.0, "b": 0.0})


def test_paths_lead_into_nested_trees() -> None:
    module = modular_atom("block/1/kernel") @ modular_atom("block/0/kernel", mass=3.0)
    params = {"block": [{"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((2, 2))}]}
    assert module.target_norms(params) == {"block": [{"kernel": 0.75}, {"kernel": 0.25}]}
    assert module.target_norms(jax.eval_shape(lambda: params)) == module.target_norms(params)


def test_variables_that_wrap_their_arrays_are_leaves_by_their_own_names() -> None:
    params = nnx.state(nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)), nnx.Param)
    for path in ("kernel", "kernel/value"):
        assert jax.tree.leaves(modular_atom(path).target_norms(params)) == [1.0]


def test_a_mass_may_be_traced() -> None:
    norms = jax.jit(lambda mass: (modular_atom("b", mass) @ modular_atom("a")).target_norms({"a": 1.0, "b": 1.0}))
    np.testing.assert_allclose(list(norms(3.0).values()), [0.25, 0.75])


def test_bad_input_is_refused() -> None:
    for what in (lambda a: a @ 3, lambda a: a + 3):
        with pytest.raises(TypeError, match="unsupported operand"):
            what(modular_atom("a"))
    a = modular_atom("a")
    with pytest.raises(ValueError, match=r"modular_atom: mass must be in \[0, inf\), got -1.0"):
        modular_atom("a", mass=-1.0)
    with pytest.raises(ValueError, match=r"modular_bond: sensitivity must be in \(0, inf\), got 0.0"):
        modular_bond(0.0)
    with pytest.raises(ValueError, match="ModularNorm: the leaf 'a' is an atom of both modules"):
        a @ a
    with pytest.raises(ValueError, match=r"ModularNorm: the leaf at \['b'\] is no atom of the module"):
        a.target_norms({"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="ModularNorm: params has no leaf 'a'"):
        a.target_norms({"b": 1.0})
    with pytest.raises(ValueError, match="ModularNorm: a module without mass"):
        modular_bond(2.0).with_mass(1.0)
    with pytest.raises(ValueError, match=r"ModularNorm: mass must be in \[0, inf\), got -1.0"):
        a.with_mass(-1.0)
    with pytest.raises(ValueError, match=r"ModularNorm: target_norm must be in \[0, inf\), got -1.0"):
        a.target_norms({"a": 1.0}, -1.0)
