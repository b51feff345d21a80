"""RAdam's rectification against its definition, in float32 too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_zoo._core.rectify import rectification


def definition(b2: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return np.sqrt(np.maximum(ratio, 0)), rho


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("threshold", [4.0, 5.0])
@pytest.mark.parametrize(("x64", "rtol"), [(True, 1e-8), (False, 2e-5)])
def test_equals_its_definition(b2: float, threshold: float, x64: bool, rtol: float) -> None:
    t = np.concatenate([np.arange(1, 40), [100, 1000, 100000]]).astype(np.float64)
    factor, rho = definition(b2, t)
    expected = (rho > 4) & (rho >= threshold)
    with jax.enable_x64(x64):
        ours, reliable = jax.vmap(lambda t: rectification(b2, t, threshold))(jnp.asarray(t, float))
    np.testing.assert_array_equal(reliable, expected)
    np.testing.assert_allclose(np.asarray(ours)[expected], factor[expected], rtol=rtol)


@pytest.mark.parametrize("b2", [0.0, 0.5])
def test_a_short_memory_is_never_reliable(b2: float) -> None:
    assert not jax.vmap(lambda t: rectification(b2, t)[1])(jnp.arange(1.0, 50.0)).any()
