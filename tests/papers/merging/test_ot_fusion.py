"""Fusion by optimal transport: neurons find their counterparts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from optax_zoo.merging.ot_fusion import _exact_plan, _sinkhorn
from tests.papers.merging.recorded import Recorded

RECORDED = Recorded("ot_fusion.basic")
ALWAYS_ON = {"correction", "past_correction"}


def recorded_layers(prefix: str) -> list[np.ndarray]:
    return [RECORDED.arrays[f"{prefix}{i}"] for i in range(3)]


@pytest.mark.parametrize("variant", RECORDED.meta["extra"]["variants"])
def test_the_authors_values(variant: str) -> None:
    flags = RECORDED.meta["extra"]["variants"][variant]
    assert all(flags[flag] for flag in ALWAYS_ON & flags.keys())
    kwargs = {name: value for name, value in flags.items() if name not in ALWAYS_ON}
    with jax.enable_x64(True):
        fused = zoo.ot_fusion(recorded_layers("in/a"), recorded_layers("in/b"), **kwargs)
    for ours, theirs in zip(fused, recorded_layers(f"out/{variant}"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


SHAPES = [(3, 3, 2, 5), (3, 3, 5, 6), (4 * 6, 8), (8, 3)]
"""Two convolutions, the second one's output of four positions flattened, and two dense layers."""


def network(seed: int, shapes: Any = SHAPES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32) for shape in shapes]


def outputs(layers: list[Any], x: jax.Array) -> jax.Array:
    for kernel in layers[:2]:
        numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers))
    return jax.nn.relu(x.reshape(len(x), -1) @ layers[2]) @ layers[3]


def renumbered(layers: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """The same network with its hidden neurons in another order."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(kernel.shape[-1]) for kernel in layers[:-1]]
    conv0, conv1, dense0, dense1 = layers
    return [
        conv0[..., orders[0]],
        conv1[:, :, orders[0]][..., orders[1]],
        dense0.reshape(4, 6, 8)[:, orders[1]].reshape(24, 8)[:, orders[2]],
        dense1[orders[2]],
    ]


IMAGES = jnp.asarray(np.random.default_rng(5).normal(size=(7, 6, 6, 2)), jnp.float32)


@pytest.mark.parametrize("kwargs", [{}, {"squared": True}, {"normalize_weights": True}, {"align_last": False}])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_a_permuted_network_is_aligned_exactly(kwargs: dict[str, Any], step: float) -> None:
    a = network(0)
    b = renumbered(a, 1)
    np.testing.assert_allclose(outputs(b, IMAGES), outputs(a, IMAGES), rtol=1e-4, atol=1e-5)
    fused = zoo.ot_fusion(a, b, ensemble_step=step, eps=0.0, **kwargs)
    for ours, kernel in zip(fused, b, strict=True):
        np.testing.assert_array_equal(ours, kernel)
    naive = zoo.interpolate(a, b, 0.5)
    assert jnp.abs(outputs(naive, IMAGES) - outputs(b, IMAGES)).max() > 0.1


def test_a_smooth_plan_comes_near_it() -> None:
    a = network(0)
    b = renumbered(a, 1)
    for ours, kernel in zip(zoo.ot_fusion(a, b, exact=False, reg=0.01), b, strict=True):
        np.testing.assert_allclose(ours, kernel, atol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_the_order_of_a_does_not_matter(exact: bool) -> None:
    a, b = network(0), network(1)
    fused, again = (zoo.ot_fusion(x, b, exact=exact, reg=0.1) for x in (a, renumbered(a, 2)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), fused, again)


def test_noisy_copies_fuse_into_something_better_than_either() -> None:
    """Of noisy, renumbered copies of a network: nearer to it than they are, and far nearer than their mean."""
    truth = network(0)

    def error(layers: list[Any]) -> float:
        return float(jnp.mean((outputs(layers, IMAGES) - outputs(truth, IMAGES)) ** 2))

    errors = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        a, b = ([x + 0.04 * rng.normal(size=x.shape).astype(np.float32) for x in truth] for _ in range(2))
        b = renumbered(b, seed)
        fused, mean = zoo.ot_fusion(a, b, align_last=False), zoo.interpolate(a, b, 0.5)
        errors.append([error(fused), error(a), error(b), error(mean)])
    of_fused, *of_both, of_mean = np.mean(errors, axis=0)
    assert of_fused < 0.8 * min(of_both) and of_fused < 0.1 * of_mean


def test_costs_of_activations_take_the_place_of_weights() -> None:
    a = network(0)
    b = renumbered(a, 1)
    seen = []

    def costs(layer: int, aligned: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        seen.append((layer, aligned.shape, kernel.shape))
        return np.linalg.norm(aligned[:, None] - kernel[None], axis=-1)

    fused, expected = zoo.ot_fusion(a, b, costs=costs), zoo.ot_fusion(a, b)
    jax.tree.map(np.testing.assert_array_equal, fused, expected)
    assert seen == [(0, (5, 18), (5, 18)), (1, (6, 45), (6, 45)), (2, (8, 24), (8, 24)), (3, (3, 8), (3, 8))]


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (3, 7)])
def test_plans_have_uniform_masses_and_the_least_cost(n: int, m: int) -> None:
    cost = np.random.default_rng(0).uniform(size=(n, m))
    exact, smooth, smoother = _exact_plan(cost), _sinkhorn(cost, 0.05), _sinkhorn(cost, 1.0)
    for plan in (exact, smooth, smoother):
        np.testing.assert_allclose(plan.sum(axis=1), 1 / n, rtol=1e-7)
        np.testing.assert_allclose(plan.sum(axis=0), 1 / m, rtol=1e-6)
    total = [np.sum(cost * plan) for plan in (exact, smooth, smoother)]
    assert total[0] <= total[1] + 1e-9 < total[2] and total[1] < total[0] + 0.05


def test_a_smoothing_that_would_underflow() -> None:
    cost = np.random.default_rng(0).uniform(5.0, 6.0, size=(5, 5))
    plan = _sinkhorn(cost, 1e-3)
    assert np.all(np.isfinite(plan)) and abs(plan.sum() - 1) < 1e-9


@pytest.mark.parametrize("exact", [True, False])
def test_hidden_layers_of_other_widths(exact: bool) -> None:
    a, b = network(0, [(5, 12), (12, 3)]), network(1, [(5, 6), (6, 3)])
    doubled = [np.repeat(b[0], 2, axis=1), np.repeat(b[1], 2, axis=0) / 2]
    aligned = zoo.ot_fusion(doubled, b, exact=exact, reg=1e-3, ensemble_step=0.0, align_last=False, eps=0.0)
    np.testing.assert_allclose(aligned[0], b[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(aligned[1], b[1] / 2, rtol=1e-3, atol=1e-5)
    assert [x.shape for x in zoo.ot_fusion(a, b, exact=exact, reg=0.1)] == [(5, 6), (6, 3)]


def test_kernels_come_back_in_their_dtype() -> None:
    a, b = ([jnp.asarray(x, jnp.bfloat16) for x in network(seed)] for seed in range(2))
    assert all(x.dtype == jnp.bfloat16 for x in zoo.ot_fusion(a, b))


def test_what_cannot_be_is_refused() -> None:
    a, b = network(0), network(1)
    with pytest.raises(ValueError, match=r"ot_fusion: reg must be in \(0, inf\), got 0"):
        zoo.ot_fusion(a, b, reg=0)
    with pytest.raises(ValueError, match=r"ot_fusion: ensemble_step must be in \[0, 1\], got 2"):
        zoo.ot_fusion(a, b, ensemble_step=2)
    with pytest.raises(ValueError, match="ot_fusion: layers_a has 3 layers and layers_b has 4"):
        zoo.ot_fusion(a[:3], b)
    with pytest.raises(ValueError, match=r"ot_fusion: kernels 1, of shapes \(24, 8\) and \(24, 8\), do not take the 5"):
        zoo.ot_fusion([a[0], a[2]], [b[0], b[2]])
    with pytest.raises(ValueError, match=r"layers_b\[1\] must be a kernel of two or more axes, got shape \(8,\)"):
        zoo.ot_fusion(a, [b[0], np.ones(8)])
    with pytest.raises(ValueError, match=r"ot_fusion: layers_b\[2\] has NaN"):
        zoo.ot_fusion(a, [*b[:2], b[2] * np.nan, b[3]])
    with pytest.raises(ValueError, match=r"the costs of layer 0 must be finite and of shape \(5, 5\), got \(2, 2\)"):
        zoo.ot_fusion(a, b, costs=lambda layer, aligned, kernel: np.ones((2, 2)))
    with pytest.raises(TypeError, match="ot_fusion: layers_a must be a list of kernels from input to output, got dict"):
        zoo.ot_fusion({"w": a[0]}, b)
    with pytest.raises(TypeError, match=r"ot_fusion: layers_a\[0\] must be real and floating, got int32"):
        zoo.ot_fusion([np.ones((2, 2), np.int32)], [np.ones((2, 2))])
    with pytest.raises(TypeError, match="ot_fusion: solves for plans on the host; call it outside of"):
        jax.jit(zoo.ot_fusion)(a, b)
