"""Adafactor: optax's numbers, the paper's in numpy, and its step sizes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import optax_zoo as zoo
from optax_zoo import MatrixView
from tests.support import optax_trajectory, trajectory

STEPS = 12
SHAPES = {"matrix": (3, 7), "kernel": (3, 2, 6, 4), "bias": (6,)}
FACTORED = {"min_dim_size_to_factor": 3}
P = PartitionSpec


def problem(shapes: dict[str, tuple[int, ...]] | None = None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and gradients whose sizes differ from leaf to leaf, row to row and step to step."""
    rng = np.random.default_rng(0)
    params, gradients = {}, {}
    for i, (name, shape) in enumerate((shapes or SHAPES).items()):
        rows = rng.normal(size=(STEPS, *shape[:1], *(1,) * (len(shape) - 1)))
        params[name] = rng.normal(size=shape) * 10.0 ** (1 - 2 * i)
        gradients[name] = rng.normal(size=(STEPS, *shape)) * np.exp(2 * rows)
    return params, gradients


def in_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(np.float32), tree)


def assert_same_steps(ours: Any, theirs: Any, start: Any, rtol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, path in theirs.items():
        moved = np.asarray(path - start[name], np.float64)
        where = {"rtol": rtol, "atol": rtol * np.abs(moved).max(), "err_msg": name}
        np.testing.assert_allclose(np.asarray(ours[name] - start[name], np.float64), moved, **where)


FLAGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "factored": FACTORED,
    "unfactored": {"factored": False, "eps": 1e-3, **FACTORED},
    "unclipped": {"clipping_threshold": None, "decay_rate": 0.5, "min_dim_size_to_factor": 1},
    "absolute": {"multiply_by_parameter_scale": False, "clipping_threshold": 0.3, **FACTORED},
    "no rate": {"learning_rate": None, "momentum": 0.0, **FACTORED},
    "schedule": {"learning_rate": optax.linear_schedule(0.1, 0.01, 9), "momentum": 0.9, **FACTORED},
    "masked decay": {
        "weight_decay_rate": 0.01,
        "weight_decay_mask": lambda tree: jax.tree.map(lambda x: jnp.ndim(x) > 1, tree),
        "momentum": 0.5,
        "dtype_momentum": None,
        **FACTORED,
    },
}


@pytest.mark.parametrize("case", FLAGS)
def test_equals_optax(case: str) -> None:
    arguments = {"learning_rate": 0.05, **FLAGS[case]}
    params, gradients = problem()
    start, pulls = in_float32((params, gradients))
    ours, _ = trajectory(zoo.adafactor(**arguments), start, pulls)
    assert_same_steps(ours, optax_trajectory(optax.adafactor(**arguments), start, pulls), start, 2e-5)


def in_optax(
    learning_rate: float, momentum: float, weight_decay_rate: float, min_dim_size_to_factor: int
) -> optax.GradientTransformation:
    """`optax.adafactor` from optax's parts, with the decay 1 - t**-c in float64, where optax's own is in float32."""
    return optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=min_dim_size_to_factor,
            decay_rate_fn=lambda i, c: 1 - jnp.asarray(i + 1, jnp.float64) ** -c,
        ),
        optax.clip_by_block_rms(1.0),
        optax.scale(learning_rate),
        optax.scale_by_param_block_rms(),
        optax.ema(momentum, debias=False),
        optax.add_decayed_weights(weight_decay_rate),
        optax.scale(-1),
    )


def test_equals_optax_in_float64() -> None:
    arguments: dict[str, Any] = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay_rate": 0.01, **FACTORED}
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adafactor(**arguments, dtype_momentum=None), params, gradients)
        alias = optax_trajectory(optax.adafactor(**arguments, dtype_momentum=None), params, gradients)
        exact = optax_trajectory(in_optax(**arguments), params, gradients)
    assert_same_steps(ours, exact, params, 1e-11)
    assert_same_steps(ours, alias, params, 1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_dim_size_to_factor": 3, "epsilon": 1e-4, "decay_rate": 0.6},
        {"min_dim_size_to_factor": 3, "decay_rate_fn": lambda i, c: jnp.minimum(1.0 - (i + 1.0) ** -c, 0.7)},
    ],
)
def test_the_direction_is_scale_by_factored_rms(arguments: dict[str, Any]) -> None:
    params, gradients = in_float32(problem())
    tail = optax.scale(-0.1)
    ours, _ = trajectory(optax.chain(zoo.scale_by_adafactor(**arguments), tail), params, gradients)
    theirs = optax_trajectory(optax.chain(optax.scale_by_factored_rms(**arguments), tail), params, gradients)
    assert_same_steps(ours, theirs, params, 2e-5)


def test_an_offset_is_subtracted_from_the_steps() -> None:
    params, gradients = in_float32(problem())
    first = jax.tree.map(lambda g: g[0], gradients)
    late, fresh = (zoo.adafactor(0.1, decay_offset=k, **FACTORED) for k in (5, 0))
    update, update_fresh = jax.jit(late.update), jax.jit(fresh.update)
    state, expected = late.init(params)._replace(count=jnp.int32(5)), fresh.init(params)
    for _ in range(2):
        updates, state = update(first, state, params)
        wanted, expected = update_fresh(first, expected, params)
        jax.tree.map(np.testing.assert_array_equal, updates, wanted)
    early, before = update(first, late.init(params), params)
    wanted, after = update_fresh(first, fresh.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, (early, before.v_row, before.v), (wanted, after.v_row, after.v))


def in_numpy(
    params: dict[str, np.ndarray],
    gradients: dict[str, np.ndarray],
    *,
    lr: float | None,
    warmup_init: bool,
    scale_parameter: bool,
    beta1: float | None,
    weight_decay: float,
    clip_threshold: float = 1.0,
    c: float = 0.8,
    eps: tuple[float, float] = (1e-30, 1e-3),
) -> dict[str, np.ndarray]:
    """Algorithm 4 of the paper for the last two axes, and 5 for vectors, with the options of Hugging Face's class."""

    def rms(x: np.ndarray) -> float:
        return np.sqrt(np.mean(x * x))

    paths = {}
    for name, x in params.items():
        r, col, v, m, path = 0.0, 0.0, 0.0, 0.0, []
        for t, g in enumerate(gradients[name], 1):
            rho = lr if lr is not None else min(1e-6 * t if warmup_init else 1e-2, 1 / np.sqrt(t))
            alpha = rho * max(eps[1], rms(x)) if scale_parameter else rho
            b2 = 1 - t**-c
            square = g * g + eps[0]
            if x.ndim >= 2:
                r = b2 * r + (1 - b2) * square.mean(-1)
                col = b2 * col + (1 - b2) * square.mean(-2)
                mean = np.mean(r, axis=-1)[..., None, None]
                estimate = r[..., :, None] * col[..., None, :] / mean
            else:
                estimate = v = b2 * v + (1 - b2) * square
            u = g / np.sqrt(estimate)
            u = alpha * u / max(1.0, rms(u) / clip_threshold)
            if beta1 is not None:
                u = m = beta1 * m + (1 - beta1) * u
            x = x - weight_decay * alpha * x - u
            path.append(x)
        paths[name] = np.stack(path)
    return paths


@pytest.mark.parametrize(
    ("step", "scale_parameter", "weight_decay", "beta1"),
    [
        ("relative", True, 0.0, None),
        ("warmup", True, 0.1, 0.9),
        ("relative", False, 0.1, None),
        (0.02, True, 0.1, 0.9),
        (0.02, False, 0.0, 0.9),
    ],
)
def test_equals_the_paper_in_numpy(step: Any, scale_parameter: bool, weight_decay: float, beta1: float | None) -> None:
    params, gradients = problem()
    relative = isinstance(step, str)
    with jax.enable_x64(True):
        tx = zoo.adafactor(
            None if relative else step,
            min_dim_size_to_factor=1,
            relative_step=relative,
            warmup_init=step == "warmup",
            multiply_by_parameter_scale=scale_parameter,
            momentum=beta1,
            dtype_momentum=None,
            weight_decay_rate=weight_decay,
            scale_weight_decay=True,
            dimension_numbers=lambda path, x: MatrixView(-2, -1, range(x.ndim - 2)) if x.ndim > 1 else None,
        )
        ours, _ = trajectory(tx, params, gradients)
    expected = in_numpy(
        params,
        gradients,
        lr=None if relative else step,
        warmup_init=step == "warmup",
        scale_parameter=scale_parameter,
        beta1=beta1,
        weight_decay=weight_decay,
    )
    assert_same_steps(ours, expected, params, 1e-10)


@pytest.mark.parametrize("warmup", [False, True])
def test_relative_steps_are_those_of_the_paper(warmup: bool) -> None:
    tx = zoo.adafactor(relative_step=True, warmup_init=warmup)
    params = {"w": jnp.ones((2,))}
    state = tx.init(params)
    for t in (1, 2, 9_999, 10_000, 40_000, 1_000_000):
        _, after = tx.update(params, state._replace(count=jnp.int32(t - 1)), params)
        expected = min(1e-6 * t if warmup else 1e-2, t**-0.5)
        np.testing.assert_allclose(after.learning_rate, expected, rtol=1e-6)


def test_the_first_direction_of_a_rank_one_square_is_the_sign() -> None:
    rng = np.random.default_rng(0)
    for shape in ((4, 6), (6, 4)):
        size = np.exp(rng.normal(size=(shape[0], 1)) + rng.normal(size=(1, shape[1])))
        g = jnp.asarray(size * rng.choice([-1, 1], shape), jnp.float32)
        for eps in (1e-30, 0.0):
            tx = zoo.scale_by_adafactor(min_dim_size_to_factor=1, epsilon=eps)
            u, _ = tx.update({"w": g}, tx.init({"w": g}))
            np.testing.assert_allclose(u["w"], jnp.sign(g), rtol=1e-5)


def test_updates_are_clipped_by_their_root_mean_square() -> None:
    params = {"w": jnp.full((3, 4), 2.0)}
    tx = zoo.adafactor(0.1, clipping_threshold=0.5, min_dim_size_to_factor=1)
    updates, _ = tx.update({"w": jnp.ones((3, 4))}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * 2.0 * 0.5, rtol=1e-5)
