"""Trees of parameters, one training update under jit, and clocks that run side by side."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any


def transformer(width: int, layers: int, vocabulary: int = 0, positions: int = 0) -> PyTree:
    """Shapes of a GPT-2: 12 leaves a layer, and 4 more with a vocabulary."""

    def linear(fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (fan_in, fan_out), "bias": (fan_out,)}

    def norm() -> dict[str, tuple[int, ...]]:
        return {"scale": (width,), "bias": (width,)}

    block = {
        "norm_1": norm(),
        "attention": linear(width, 3 * width),
        "projection": linear(width, width),
        "norm_2": norm(),
        "expand": linear(width, 4 * width),
        "contract": linear(4 * width, width),
    }
    tree: PyTree = {f"block_{i}": block for i in range(layers)}
    if vocabulary:
        embeddings = {"tokens": (vocabulary, width), "positions": (positions, width)}
        tree |= {"embeddings": embeddings, "norm": norm()}
    return tree


def _matrices(count: int, width: int) -> PyTree:
    shapes = [(width, width), (width, 3 * width), (width, 4 * width), (4 * width, width)]
    return {f"w{i}": shapes[i % 4] for i in range(count)}


SIZES: Mapping[str, PyTree] = {
    "layers": {f"w{i}": (1024, 1024) for i in range(24)},
    "gpt2": transformer(768, 12, 50257, 1024),
    "blocks": transformer(768, 4),
    "stack": transformer(768, 12),
    "thousand": _matrices(1000, 64),
    "tiny": transformer(8, 1, 16, 8),
}
"""24 square matrices (25M parameters); GPT-2 small (148 leaves, 124M); four of its layers without embeddings, for
matrix methods (28M); all twelve, for what is compiled only (85M); 1000 small matrices, for the compiler; a toy."""


def shapes(size: str) -> PyTree:
    """The parameters of a size, as `jax.ShapeDtypeStruct`s of float32."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        SIZES[size],
        is_leaf=lambda x: isinstance(x, tuple),
    )


@functools.cache
def arrays(size: str) -> tuple[PyTree, PyTree]:
    """Random parameters and gradients of a size, drawn once."""
    generator = np.random.default_rng(0)

    def normal(scale: float) -> PyTree:
        return jax.tree.map(
            lambda leaf: jnp.asarray(np.float32(scale) * generator.standard_normal(leaf.shape, np.float32)),
            shapes(size),
        )

    return normal(0.02), normal(0.01)


def newton_schulz(x: np.ndarray, steps: int = 5, eps: float = 1e-7) -> np.ndarray:
    """Keller Jordan's iteration in float64."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, steps, eps).T
    x = x.astype(np.float64)
    x /= np.linalg.norm(x) + eps
    for _ in range(steps):
        r = x @ x.T
        x = 3.4445 * x + (-4.7750 * r + 2.0315 * r @ r) @ x
    return x


def polar_error(tx: optax.GradientTransformation, size: str) -> float:
    """Largest distance, over the shapes of matrices, between first updates and `newton_schulz`, both of norm 1."""

    def unit(x: Any) -> np.ndarray:
        wide = np.asarray(x, np.float64)
        return wide / np.linalg.norm(wide)

    one_a_shape = {grad.shape: grad for grad in jax.tree.leaves(arrays(size)[1]) if grad.ndim == 2}
    errors = []
    for grad in one_a_shape.values():
        update, _ = jax.jit(tx.update)(grad, tx.init(grad), grad)
        errors.append(np.linalg.norm(unit(update) - unit(newton_schulz(np.asarray(grad)))))
    return float(max(errors))


def nbytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def parameters(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def state_of(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    return jax.eval_shape(tx.init, params)


def bytes_moved(tx: optax.GradientTransformation, params: PyTree) -> int:
    """What a perfect update moves: parameters and slots read and written once, gradients read once."""
    return 3 * nbytes(params) + 2 * nbytes(state_of(tx, params))


def jitted_step(tx: optax.GradientTransformation, needs: Sequence[str]) -> Any:
    """Update and apply in one jit: (params, state, grads) -> (params, state), the first two donated."""
    tx = optax.with_extra_args_support(tx)

    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        supply = {"value": lambda: jnp.float32(1.0), "grad": lambda: grads, "key": lambda: jax.random.key(0)}
        extra = {name: supply[name]() for name in needs if name != "params"}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def training(tx: optax.GradientTransformation, needs: Sequence[str], params: PyTree, grads: PyTree) -> Callable:
    """A function that takes one step on buffers of its own and returns them."""
    step = jitted_step(tx, needs)
    # Some of optax's states alias the parameters, which cannot be donated twice.
    buffers = jax.tree.map(jnp.copy, (params, tx.init(params)))

    def run() -> PyTree:
        nonlocal buffers
        buffers = step(*buffers, grads)
        return buffers

    return run


def stream(entries: int) -> Callable:
    """Reads and writes one array in place: the bandwidth that everything else is compared with."""
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    buffer = jnp.zeros(entries, jnp.float32)

    def run() -> PyTree:
        nonlocal buffer
        buffer = step(buffer)
        return buffer

    return run


def side_by_side(runs: Sequence[Callable[[], PyTree]], rounds: int, seconds: float) -> np.ndarray:
    """Seconds per call, one row a round and one column a function, in turns so that all see the same machine.

    Args:
      runs: functions that return arrays to wait for; each is first called twice, to compile and to warm up.
      rounds: most rounds; every other one goes backwards.
      seconds: no round is started after this time, but three are always run.
    """

    def clock(run: Callable[[], PyTree], calls: int) -> float:
        start = time.perf_counter()
        done = [run() for _ in range(calls)]
        jax.block_until_ready(done[-1])
        return (time.perf_counter() - start) / calls

    first = [(clock(run, 1), clock(run, 1))[1] for run in runs]
    calls = [max(1, min(100, round(0.05 / once))) for once in first]
    table, start = [], time.perf_counter()
    for index in range(rounds):
        if index >= 3 and time.perf_counter() - start > seconds:
            break
        row = np.zeros(len(runs))
        for i in range(len(runs))[:: -1 if index % 2 else 1]:
            row[i] = clock(runs[i], calls[i])
        table.append(row)
    return np.stack(table)
