"""What all laws share: the runner, one small problem, and trajectories compiled once per method and process.

A law is a function of a `Paper` that raises when the method does not obey, decorated with `law`. Its name, the key
of `Paper.breaks`, is its file's name without `test_`. A method is under all laws by being registered; a method that
cannot obey says so in its record, and then the law must really be broken.
"""

import contextlib
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.sharding import AxisType, PartitionSpec

import optax_zoo
from optax_zoo import Paper
from optax_zoo._core.averages import gradient_params
from optax_zoo._core.mesh import varying_axes

PyTree = Any
Check = Callable[[Paper], None]
Step = Callable[..., tuple[PyTree, PyTree]]
Batch = Mapping[str, PyTree]

STEPS = 6  # past the steps that variance rectification sits out
ROWS = 8  # of the matrix, one for each device
BROKEN = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    Warning,
    pytest.fail.Exception,
)
"""What a check may raise about a method that does not obey."""


def law(
    check: Check | None = None,
    *,
    concerns: Callable[[Paper], bool] = lambda paper: True,
    in_words: bool = False,
) -> Any:
    """Makes a check the test of one law over the registered methods that it concerns.

    With `in_words` the check raises a `Violation` in the words of the record that it confirms.
    """
    if check is None:
        return functools.partial(law, concerns=concerns, in_words=in_words)
    name = Path(inspect.getfile(check)).stem.removeprefix("test_")

    @functools.wraps(check)
    def test(paper: Paper) -> None:
        with promotion_of(paper):
            if name in paper.breaks:
                confirm(check, paper, paper.breaks[name], in_words)
            else:
                check(paper)

    papers = [paper for paper in optax_zoo.papers().values() if paper.trains and concerns(paper)]
    cases = [pytest.param(paper, id=paper.name) for paper in papers]
    return pytest.mark.parametrize("paper", cases)(test)


class Violation(AssertionError):
    """A violation in the words that records have for it."""


def confirm(check: Check, paper: Paper, reason: str, in_words: bool) -> None:
    """Fails unless the check finds the law broken, with `in_words` in those of the record."""
    try:
        check(paper)
    except BROKEN as broken:
        if in_words and not (isinstance(broken, Violation) and str(broken) == reason):
            pytest.fail(f"{paper.name}: its record in Paper.breaks says: {reason}; found: {broken}")
    else:
        pytest.fail(f"{paper.name} obeys this law; its record in Paper.breaks is outdated: {reason}")


@contextlib.contextmanager
def promotion_of(paper: Paper) -> Iterator[None]:
    """The zoo's own code runs under the strict promotion of these tests, other libraries' under JAX's default."""
    if paper.library == "optax_zoo":
        yield
    else:
        with default_promotion():
            yield


@contextlib.contextmanager
def default_promotion() -> Iterator[None]:
    """For wrappers from optax, which do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# The problem: a matrix and a vector, drawn towards a target that moves from step to step.


def make_params(dtype: Any = jnp.float32) -> dict[str, Array]:
    values = np.random.default_rng(0).normal(size=3 * ROWS + 3)
    return {"b": jnp.asarray(values[-3:], dtype), "w": jnp.asarray(values[:-3].reshape(ROWS, 3), dtype)}


def make_mixed_params() -> dict[str, Array]:
    """Matrices of three dtypes and a vector."""
    matrices = {dtype.__name__: make_params(dtype)["w"] for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)}
    return {**matrices, "vector": make_params(jnp.bfloat16)["b"]}


def make_batch(i: int, params: PyTree | None = None) -> dict[str, PyTree]:
    """A target in the structure and dtypes of `params`, and a seed for methods that draw random numbers."""
    draw = np.random.default_rng(i + 1)
    like = make_params() if params is None else params
    target = jax.tree.map(lambda p: jnp.asarray(draw.normal(size=p.shape), p.dtype), like)
    return {"target": target, "seed": np.uint32(i)}


def absent(x: object) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)


def make_loss(batch: Batch) -> Callable[[PyTree], Array]:
    """A convex function of each entry; leaves that are masked away count as constant."""

    def term(p: Array, t: Array) -> Array:
        gap = jnp.abs(p - t) if jnp.iscomplexobj(p) else p - t
        squared = jnp.square(gap.astype(jnp.float32))
        partial = jnp.sum(0.5 * squared + 0.005 * jnp.square(squared))
        axes = varying_axes(partial)
        return jax.lax.psum(partial, axes) if axes else partial

    def loss(params: PyTree) -> Array:
        leaves, treedef = jax.tree.flatten(params, is_leaf=absent)
        pairs = zip(leaves, treedef.flatten_up_to(batch["target"]), strict=True)
        return sum((term(p, t) for p, t in pairs if not absent(p)), start=jnp.zeros((), jnp.float32))

    return loss


def stepper(tx: optax.GradientTransformation, loss_of: Callable[..., Any] = make_loss, **more: Any) -> Step:
    """`step(params, state, batch)` -> (updates, state), with every extra argument a method may ask for and `more`."""

    def step(params: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        given = optax_zoo.closures(loss_of(batch), gradient_params(state, params))
        given["key"] = jax.random.key(batch["seed"])
        return optax.with_extra_args_support(tx).update(given["grad"], state, params, **given, **more)

    return step


# Methods.


def rate(paper: Paper) -> float:
    return 7e-4 * paper.relative_learning_rate


def build(
    paper: Paper, learning_rate: Any, make: Callable[..., Any] | None = None, momentum: float = 0.9, /, **arguments: Any
) -> optax.GradientTransformationExtraArgs:
    """A ready-to-train optimizer of the method by the record's factory or by `make` in its place.

    What wrappers wrap and transforms precede is SGD with momentum, which hides nothing by normalising it away.
    """
    make = make or paper.make
    base = optax.sgd(learning_rate, momentum or None)
    tx = make(**{**required(paper, learning_rate, base), **arguments})
    return optax.with_extra_args_support(optax.chain(tx, base) if paper.kind == "transform" else tx)


def arguments_of(paper: Paper) -> dict[str, Any]:
    return {**paper.example, **paper.probe}


def required(paper: Paper, learning_rate: Any, base: optax.GradientTransformation) -> dict[str, Any]:
    """The arguments without which `paper.make` cannot be called."""
    if paper.kind == "transform":
        return arguments_of(paper)
    first = next(iter(inspect.signature(paper.make).parameters))
    return {first: learning_rate if paper.kind == "optimizer" else base, **arguments_of(paper)}


def numbers(factory: Callable[..., Any]) -> dict[str, set[Any]]:
    """The factory's numeric arguments, each with the types that its annotation allows."""
    parameters = inspect.signature(factory, eval_str=True).parameters
    allowed = {name: _members(parameter.annotation) for name, parameter in parameters.items()}
    return {name: types for name, types in allowed.items() if types & {int, float}}


def _members(hint: Any) -> set[Any]:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | str)) else ()
    return set().union(*map(_members, parts)) if parts else {typing.get_origin(hint) or hint}


# Trajectories.


class Reference(NamedTuple):
    """A method's first steps, each jitted alone; item i of a list is what step i was given or gave."""

    step: Step
    traces: list[Any]  # one entry a tracing
    params: list[PyTree]
    states: list[PyTree]
    updates: list[PyTree]


def reference(paper: Paper) -> Reference:
    return _reference(paper.name)


@functools.cache
def _reference(name: str) -> Reference:
    paper = optax_zoo.paper(name)
    tx = build(paper, rate(paper))
    traces: list[Any] = []
    step = jax.jit(counted(stepper(tx), traces))
    params = make_params()
    walked = Reference(step, traces, [params], [tx.init(params)], [])
    for i in range(STEPS):
        updates, state = step(walked.params[-1], walked.states[-1], make_batch(i))
        walked.updates.append(updates)
        walked.states.append(state)
        walked.params.append(optax.apply_updates(walked.params[-1], updates))
    assert_finite(walked.params, f"the path of {name} on the problem of the laws")
    return walked


def traced_rate(paper: Paper, **arguments: Any) -> tuple[Step, list[Any]]:
    """`step(learning_rate, params, state, batch)` with the rate as a traced argument, and its tracings."""
    return _traced_rate(paper.name, **arguments)


@functools.cache
def _traced_rate(name: str, **arguments: Any) -> tuple[Step, list[Any]]:
    paper = optax_zoo.paper(name)

    def step(learning_rate: Array, params: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        return stepper(build(paper, learning_rate, **arguments))(params, state, batch)

    traces: list[Any] = []
    return jax.jit(counted(step, traces)), traces


def counted(step: Step, traces: list[Any]) -> Step:
    def traced(*args: Any) -> tuple[PyTree, PyTree]:
        traces.append(jax.tree.map(jnp.shape, args))
        return step(*args)

    return traced


def stacked_batches() -> Batch:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(make_batch(i) for i in range(STEPS)))


def rollout(tx: optax.GradientTransformation, params: PyTree, batches: Batch, **more: Any) -> tuple[PyTree, PyTree]:
    """(parameters, state) after one step a batch, the state initialised and the steps scanned; for use under jit."""
    step = stepper(tx, **more)

    def body(carry: tuple[PyTree, PyTree], batch: Batch) -> tuple[tuple[PyTree, PyTree], None]:
        params, state = carry
        updates, state = step(params, state, batch)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, tx.init(params)), batches)[0]


def matrix_mesh(axis_type: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    """One device for each row of the matrix."""
    return jax.make_mesh((ROWS,), ("data",), axis_types=(axis_type,))


def row_specs(tree: PyTree) -> PyTree:
    """Rows are split over devices: of matrices, and of what the state keeps of their rows."""

    def spec(leaf: Array) -> PartitionSpec:
        return PartitionSpec("data") if jnp.shape(leaf)[:1] == (ROWS,) else PartitionSpec()

    return jax.tree.map(spec, tree)


def sharded_stepper(tx: optax.GradientTransformation, params: PyTree, state: PyTree) -> Step:
    """The step of `stepper` inside `jax.shard_map`, jitted, for trees like `params` and `state`."""
    over_params, over_state = row_specs(params), row_specs(state)
    sharded = jax.shard_map(
        stepper(tx, param_specs=over_params),
        mesh=matrix_mesh(),
        in_specs=(over_params, over_state, {"target": over_params, "seed": PartitionSpec()}),
        out_specs=(over_params, over_state),
    )
    return jax.jit(sharded)


# Comparisons.


def avals(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def assert_close(actual: PyTree, expected: PyTree, what: str, rtol: float = 1e-5) -> None:
    """Equal trees: the same structure, and every leaf within rounding of its largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), what
    for (path, mine), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        where = f"{what} at {jax.tree_util.keystr(path)}"
        assert mine.shape == other.shape, f"{where}: shape {mine.shape}, expected {other.shape}"
        if mine.size:
            x, y = (np.asarray(leaf, np.complex128 if jnp.iscomplexobj(leaf) else np.float64) for leaf in (mine, other))
            np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.max(np.abs(y)) + 3e-7, err_msg=where)


def assert_finite(tree: PyTree, what: str) -> None:
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert jnp.isfinite(leaf).all(), f"{what} at {jax.tree_util.keystr(path)} is not finite"
