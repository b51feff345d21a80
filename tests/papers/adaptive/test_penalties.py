"""SCAD and MCP: their shapes, and proximal maps against a minimisation over a fine grid."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo

X = np.linspace(-4.0, 4.0, 401)


def l1_penalty(x: Any, lam: float) -> Any:
    return lam * abs(x)


PROXES = [
    pytest.param(l1_penalty, lambda x, step: zoo.prox_l1(x, step * 0.7), {"lam": 0.7}, id="l1"),
    pytest.param(zoo.scad_penalty, partial(zoo.prox_scad, lam=0.7), {"lam": 0.7}, id="scad"),
    pytest.param(zoo.scad_penalty, partial(zoo.prox_scad, lam=0.5, a=5.0), {"lam": 0.5, "a": 5.0}, id="scad a=5"),
    pytest.param(zoo.mcp_penalty, partial(zoo.prox_mcp, lam=0.7), {"lam": 0.7}, id="mcp"),
    pytest.param(zoo.mcp_penalty, partial(zoo.prox_mcp, lam=0.5, gamma=4.0), {"lam": 0.5, "gamma": 4.0}, id="mcp 4"),
]


@pytest.mark.parametrize("step", [0.3, 1.0, 1.6])
@pytest.mark.parametrize(("penalty", "prox", "shape"), PROXES)
def test_proximal_maps_minimise(penalty: Callable, prox: Callable, shape: dict[str, float], step: float) -> None:
    grid = np.linspace(-5.0, 5.0, 20_001)
    with jax.enable_x64(True):
        cost = np.asarray(penalty(grid, **shape))
        ours = np.asarray(prox(X, step=step))
    best = grid[np.argmin(np.square(grid - X[:, None]) / (2 * step) + cost, axis=1)]
    np.testing.assert_allclose(ours, best, atol=1e-3)
    assert np.array_equal(ours == 0, np.abs(X) <= step * shape["lam"])


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_the_formulas_of_the_papers(lam: float) -> None:
    a, gamma, size = 3.7, 2.0, np.abs(X)
    middle = (2 * a * lam * size - size**2 - lam**2) / (2 * (a - 1))
    scad = np.where(size <= lam, lam * size, np.where(size < a * lam, middle, lam**2 * (a + 1) / 2))
    mcp = np.where(size <= gamma * lam, lam * size - size**2 / (2 * gamma), gamma * lam**2 / 2)
    with jax.enable_x64(True):
        np.testing.assert_allclose(zoo.scad_penalty(X, lam), scad, atol=1e-14)
        np.testing.assert_allclose(zoo.mcp_penalty(X, lam), mcp, atol=1e-14)


def test_slopes_start_at_lam_and_end_at_0() -> None:
    lam = 0.5
    slopes = {
        penalty: jax.vmap(jax.grad(lambda x, penalty=penalty: penalty(x, lam)))(jnp.array([1e-6, -1e-6, 3.0, -3.0]))
        for penalty in (zoo.scad_penalty, zoo.mcp_penalty)
    }
    for slope in slopes.values():
        np.testing.assert_allclose(slope, [lam, -lam, 0, 0], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_stays_and_numbers_may_be_arrays(dtype: str) -> None:
    x = jnp.array([[0.2, -3.0]], dtype)
    lam = jnp.float32(0.5)
    for function in (zoo.scad_penalty, zoo.mcp_penalty, zoo.prox_l1, zoo.prox_scad, zoo.prox_mcp):
        assert jax.jit(function)(x, lam).dtype == x.dtype
    assert zoo.prox_scad(x, lam).tolist() == zoo.prox_mcp(x, lam).tolist() == [[0.0, -3.0]]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: zoo.prox_scad(X, 1.0, a=2.0), r"prox_scad: a must be in \(2.0, inf\), got 2.0"),
        (lambda: zoo.prox_scad(X, 1.0, a=2.5, step=1.5), r"prox_scad: a must be in \(2.5, inf\), got 2.5"),
        (lambda: zoo.prox_mcp(X, 1.0, gamma=1.0), r"prox_mcp: gamma must be in \(1.0, inf\), got 1.0"),
        (lambda: zoo.prox_l1(X, -1.0), r"prox_l1: threshold must be in \[0, inf\), got -1.0"),
        (lambda: zoo.scad_penalty(X, -0.1), r"scad_penalty: lam must be in \[0, inf\), got -0.1"),
        (lambda: zoo.scad_penalty(X, 0.1, a=2), r"scad_penalty: a must be in \(2, inf\), got 2"),
        (lambda: zoo.mcp_penalty(X, 0.1, gamma=0.0), r"mcp_penalty: gamma must be in \(0, inf\), got 0.0"),
        (lambda: zoo.mcp_penalty(X, float("nan")), r"mcp_penalty: lam must be in \[0, inf\), got nan"),
        (lambda: zoo.prox_l1(X, 1.0, 2.0), "prox_l1: too many positional arguments"),
    ],
)
def test_bad_numbers(call: Callable, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        call()


@pytest.mark.parametrize("x", [jnp.array([1 + 2j]), jnp.array([1, 2])])
def test_only_real_floating_arrays(x: jax.Array) -> None:
    with pytest.raises(TypeError, match=r"^mcp_penalty: x must be a real floating array, got (complex64|int32)"):
        zoo.mcp_penalty(x, 0.1)
