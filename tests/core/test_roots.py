"""The cube root: accurate over the whole range of each dtype, and sane at its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_zoo._core.roots import cube_root

ACCURACY = {"float32": 3e-7, "float64": 1e-15}


@pytest.mark.parametrize("dtype", ACCURACY)
def test_is_the_cube_root_of_every_normal_number(dtype: str) -> None:
    info = np.finfo(dtype)
    exponents = np.random.default_rng(0).uniform(info.minexp, info.maxexp - 1e-3, 20_000)
    x = np.concatenate([np.exp2(exponents), [info.tiny, info.max, 1.0, 8.0, 27.0]]).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        ours = np.asarray(jax.jit(cube_root)(np.stack([x, -x])))
    expected = np.cbrt(x.astype(np.float64))
    assert ours.dtype == x.dtype
    np.testing.assert_allclose(ours.astype(np.float64), [expected, -expected], rtol=ACCURACY[dtype])


@pytest.mark.parametrize("dtype", ACCURACY)
def test_zero_infinity_and_nan_are_their_own(dtype: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
    with jax.enable_x64(dtype == "float64"):
        ours = np.asarray(jax.jit(cube_root)(x))
    np.testing.assert_array_equal(ours, x)


@pytest.mark.parametrize("dtype", ACCURACY)
def test_subnormal_numbers_have_a_root_between_0_and_the_true_one(dtype: str) -> None:
    info = np.finfo(dtype)
    x = np.array([info.smallest_subnormal, 1000 * info.smallest_subnormal, info.tiny / 2], dtype)
    with jax.enable_x64(dtype == "float64"):
        ours = np.asarray(jax.jit(cube_root)(x), np.float64)
    assert np.all((ours >= 0) & (ours <= np.cbrt(x.astype(np.float64)) * (1 + ACCURACY[dtype])))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_arrays_keep_their_dtype(dtype: str) -> None:
    x = jnp.array([0.0, 1e-6, 1.0, 64.0], dtype)
    expected = np.cbrt(np.asarray(x, np.float64))
    assert cube_root(x).dtype == x.dtype
    np.testing.assert_allclose(np.asarray(cube_root(x), np.float64), expected, rtol=float(jnp.finfo(dtype).eps))


def test_can_be_differentiated() -> None:
    x = jnp.array([-0.1, 1.0, 30.0])
    slope = jax.vmap(jax.grad(cube_root))(x)
    np.testing.assert_allclose(slope, np.cbrt(x) / (3 * x), rtol=1e-4)
