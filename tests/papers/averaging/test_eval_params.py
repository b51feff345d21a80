"""The weights to evaluate are found through any nesting of optax's combinators, for every averaging method."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_zoo as zoo
from optax_zoo._core.averages import Average
from optax_zoo._core.lookup import found
from tests.laws.harness import build, default_promotion

PARAMS = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
RATE = 0.1
STEPS = 7  # no multiple of the periods of probes, so that parameters and averages differ at the end


def averages(paper: zoo.Paper) -> bool:
    """Whether the state of the method, or one inside it, knows better weights than the ones being trained."""
    return paper.trains and bool(found(jax.eval_shape(build(paper, RATE).init, PARAMS), Average))


REGISTERED: dict[str, Callable[[], optax.GradientTransformation]] = {
    paper.name: functools.partial(build, paper, RATE) for paper in zoo.papers().values() if averages(paper)
}
VARIANTS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "with_ema debiased": lambda: zoo.with_ema(optax.sgd(RATE), 0.7, init="zeros", debias=True),
    "schedule_free of sgd": lambda: zoo.schedule_free(optax.sgd(RATE), RATE),
    "switch_ema of adam": lambda: zoo.switch_ema(zoo.adamp(RATE), 0.7, switch_every=3),
    "lookahead with reset": lambda: zoo.lookahead(optax.sgd(RATE, 0.9), 2, pullback="reset"),
    "nt_asgd of the paper": lambda: zoo.nt_asgd(RATE, nonmono=1, drop_first=False),
}
METHODS = {**REGISTERED, **VARIANTS}

NESTINGS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda tx: optax.chain(optax.clip(10.0), tx),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(10.0)), ("tx", tx)),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": True}),
    "partition": lambda tx: optax.partition({"all": tx}, {"a": "all", "b": "all"}),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda scale: optax.chain(optax.scale(scale), tx))(1.0),
    "MultiSteps": lambda tx: accumulating(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "deep": lambda tx: optax.apply_if_finite(optax.masked(optax.chain(optax.identity(), tx), True), 3),
}


def accumulating(tx: optax.GradientTransformation, micro_steps: int) -> optax.GradientTransformationExtraArgs:
    """`optax.MultiSteps` with extra arguments, which its own `gradient_transformation` drops."""
    steps = optax.MultiSteps(tx, micro_steps)
    return optax.GradientTransformationExtraArgs(steps.init, steps.update)


class Walk(NamedTuple):
    """Where a method has come to."""

    params: Any
    state: Any

    @property
    def averaged(self) -> Any:
        return zoo.eval_params(self.state, self.params)


def gradients(params: Any, i: int) -> Any:
    return jax.tree.map(lambda p: jnp.cos(p + i), params)


def run(tx: optax.GradientTransformation, params: Any = PARAMS, micro_steps: int = 1) -> Walk:
    """Steps with gradients that depend on the step and a metric that soon becomes worse."""
    state = tx.init(params)
    update = jax.jit(optax.with_extra_args_support(tx).update)
    for i in range(STEPS):
        grads = gradients(params, i)
        for _ in range(micro_steps):
            updates, state = update(grads, state, params, value=np.float32(i))
            params = optax.apply_updates(params, updates)
    return Walk(params, state)


@contextlib.contextmanager
def nested() -> Iterator[None]:
    """For optax's combinators, under JAX's default promotion; hundreds of them are not worth being compiled."""
    with default_promotion(), jax.disable_jit():
        yield


@functools.cache
def method(name: str) -> optax.GradientTransformation:
    return METHODS[name]()


@functools.cache
def alone(name: str) -> Walk:
    return run(method(name))


def assert_as_alone(params: Any, averaged: Any, name: str) -> None:
    for ours, expected in ((params, alone(name).params), (averaged, alone(name).averaged)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), ours, expected)


@pytest.mark.parametrize("name", METHODS)
def test_alone_it_is_found(name: str) -> None:
    walk = alone(name)
    averaged = jax.jit(zoo.eval_params)(walk.state, walk.params)
    assert not np.allclose(averaged["a"], walk.params["a"], rtol=1e-3)
    assert_as_alone(walk.params, averaged, name)


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", METHODS)
def test_found_through(nesting: str, name: str) -> None:
    with nested():
        walk = run(NESTINGS[nesting](method(name)))
    assert_as_alone(walk.params, walk.averaged, name)


@pytest.mark.parametrize("name", METHODS)
def test_found_through_several_micro_steps(name: str) -> None:
    with nested():
        walk = run(accumulating(method(name), 3), micro_steps=3)
    assert_as_alone(walk.params, walk.averaged, name)


class Leaves(nnx.Module):
    def __init__(self) -> None:
        self.a, self.b = (nnx.Param(PARAMS[name]) for name in "ab")


@pytest.mark.parametrize("name", METHODS)
def test_found_through_nnx(name: str) -> None:
    as_arrays = getattr(nnx, "as_pure", None) or nnx.pure  # the name before Flax 0.12.7
    module = Leaves()
    optimizer = nnx.Optimizer(module, method(name), wrt=nnx.Param)
    with nested():
        for i in range(STEPS):
            optimizer.update(module, gradients(nnx.state(module, nnx.Param), i), value=np.float32(i))
    params, state = as_arrays(nnx.state(module)), as_arrays(optimizer.opt_state)
    assert_as_alone(dict(params), dict(zoo.eval_params(state, params)), name)


@pytest.mark.parametrize("name", METHODS)
def test_leaves_without_an_average_come_from_the_parameters(name: str) -> None:
    with nested():
        expected = run(method(name), {"a": PARAMS["a"]}).averaged
        partition = optax.partition(
            {"averaged": method(name), "plain": optax.sgd(0.1)}, {"a": "averaged", "b": "plain"}
        )
        for tx in (partition, optax.masked(method(name), {"a": True, "b": False})):
            walk = run(tx)
            np.testing.assert_array_equal(walk.averaged["b"], walk.params["b"])
            np.testing.assert_allclose(walk.averaged["a"], expected["a"], rtol=2e-5, atol=1e-6)


def test_two_averages_in_a_partition_each_fill_their_leaves() -> None:
    methods = {"a": "with_ema", "b": "schedule_free_sgd"}
    with nested():
        walk = run(optax.partition({name: method(name) for name in methods.values()}, methods))
    for leaf, name in methods.items():
        expected = run(method(name), {leaf: PARAMS[leaf]}).averaged
        np.testing.assert_allclose(walk.averaged[leaf], expected[leaf], rtol=1e-5)


def test_of_nested_averages_the_outermost_decides() -> None:
    walk = run(zoo.with_ema(zoo.schedule_free_sgd(0.1), 0.7))
    jax.tree.map(np.testing.assert_array_equal, walk.averaged, walk.state.ema)


def test_without_an_average_the_parameters_are_returned() -> None:
    with default_promotion():
        walk = run(optax.adam(0.1))
    assert walk.averaged is walk.params


@pytest.mark.parametrize("name", METHODS)
def test_before_the_first_step_the_parameters_are_returned(name: str) -> None:
    jax.tree.map(np.testing.assert_array_equal, Walk(PARAMS, method(name).init(PARAMS)).averaged, PARAMS)


@pytest.mark.parametrize("name", METHODS)
def test_the_average_comes_in_the_parameters_dtypes(name: str) -> None:
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    averaged = jax.eval_shape(lambda params: run(method(name), params).averaged, params)
    assert [leaf.dtype for leaf in jax.tree.leaves(averaged)] == [jnp.bfloat16, jnp.float32]
