import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_zoo._core.matrix import Solver, orthogonalize
from optax_zoo._core.quintics import PRESETS, polar_express_coeffs
from optax_zoo._core.views import MatrixView

GOLDEN = Path(__file__).parents[2] / "golden" / "orthogonalize.basic.npz"


def shrunk(rows: np.ndarray, safety: float) -> np.ndarray:
    return rows / safety ** np.array([1.0, 3.0, 5.0])


POLAR = np.array(PRESETS["polar_express"])
CASES: dict[str, dict[str, Any]] = {
    "keller5": {},
    "polar5_safety105": {"ns_coeffs": shrunk(POLAR[:5], 1.05)},
    "polar5_safety105_gram": {"ns_coeffs": shrunk(POLAR[:5], 1.05), "method": "gram"},
    "dion5_gram": {"ns_coeffs": "dion", "method": "gram", "gram_restarts": [2, 4]},
    "polar8_paper": {"ns_coeffs": [*shrunk(POLAR[:7], 1.01).tolist(), POLAR[7].tolist()], "norm_safety": 1.01},
    "svd": {"method": "svd"},
}


def gaussian(*shape: int, dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def double(*shape: int) -> jax.Array:
    return gaussian(*shape).astype(jnp.float64)


def in_numpy(x: np.ndarray, rows: Any, eps: float = 1e-7, norm_safety: float = 1.0) -> np.ndarray:
    """The update of the paper, literally."""
    if x.shape[0] > x.shape[1]:
        return in_numpy(x.T, rows, eps, norm_safety).T
    x = x / (norm_safety * np.linalg.norm(x) + eps)
    for a, b, c in rows:
        r = x @ x.T
        x = a * x + (b * r + c * r @ r) @ x
    return x


@pytest.mark.parametrize("case", CASES)
def test_equals_the_recorded_results(case: str) -> None:
    with np.load(GOLDEN, allow_pickle=False) as file, jax.enable_x64(True):
        rtol = json.loads(str(file["meta"]))["rtol"]
        for i in range(4):
            ours = orthogonalize(jnp.asarray(file[f"in/x{i}"]), **CASES[case])
            np.testing.assert_allclose(ours, file[f"out/{case}_{i}"], rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["plain", "gram", "auto"])
@pytest.mark.parametrize("shape", [(6, 6), (5, 6), (3, 11), (11, 3), (1, 1), (1, 4)])
def test_every_preset_equals_the_numpy_transcription(preset: str, method: Any, shape: tuple[int, int]) -> None:
    rows = PRESETS[preset] * 5 if preset == "keller" else PRESETS[preset][:5] if preset == "polar_express" else None
    with jax.enable_x64(True):
        x = gaussian(*shape).astype(jnp.float64)
        ours = orthogonalize(x, ns_coeffs=preset, method=method, norm_safety=1.02)
        np.testing.assert_allclose(ours, in_numpy(np.asarray(x), rows or PRESETS[preset], norm_safety=1.02), atol=1e-12)


def test_keller_on_a_diagonal_is_the_scalar_recursion() -> None:
    s = np.array([0.01, 0.3, 0.6, 1.0])
    with jax.enable_x64(True):
        ours = orthogonalize(jnp.diag(jnp.asarray(s)), eps=0.0)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    np.testing.assert_allclose(np.diag(np.asarray(ours)), s, rtol=1e-12)


def test_polar_express_converges_to_the_polar_factor() -> None:
    u, _, vt = np.linalg.svd(np.random.default_rng(0).normal(size=(6, 9)), full_matrices=False)
    x = (u * np.logspace(0, -2, 6)) @ vt
    with jax.enable_x64(True):
        ours = orthogonalize(jnp.asarray(x), ns_coeffs=polar_express_coeffs(8), eps=0.0)
        exact = orthogonalize(jnp.asarray(x), method="svd")
    np.testing.assert_allclose(ours, u @ vt, atol=1e-12)
    np.testing.assert_allclose(exact, u @ vt, atol=1e-12)


def test_the_recipe_gives_the_published_tables() -> None:
    np.testing.assert_allclose(polar_express_coeffs(8), PRESETS["polar_express"], atol=1e-8)
    np.testing.assert_allclose(
        polar_express_coeffs(5, cushion=0.02, safety=1.02), PRESETS["polar_express_5"], atol=1e-12
    )


@pytest.mark.parametrize("lower", [1e-8, 1e-3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("safety", [1.0, 1.01])
def test_the_recipe_converges_from_its_whole_interval(lower: float, safety: float) -> None:
    s = np.linspace(lower, 1.0, 1001)
    for a, b, c in polar_express_coeffs(30, lower=lower, safety=safety):
        s = a * s + b * s**3 + c * s**5
    np.testing.assert_allclose(s, 1.0, atol=1e-12)


def test_transposition_commutes() -> None:
    with jax.enable_x64(True):
        x = double(5, 8)
        np.testing.assert_allclose(orthogonalize(x.T).T, orthogonalize(x), rtol=1e-12)


@pytest.mark.parametrize("steps", [5, 8])
def test_auto_is_as_accurate_as_plain_on_a_decaying_spectrum(steps: int) -> None:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 16)))
    x = q * np.logspace(0, -7, 16)
    exact = in_numpy(x, PRESETS["keller"] * steps)
    ours = orthogonalize(jnp.asarray(x, jnp.float32), method="auto", ns_steps=steps)
    np.testing.assert_allclose(ours, exact, atol=3e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0), (2, 0, 3), (1, 1), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("method", ["plain", "gram", "auto", "svd"])
def test_zero_and_empty_matrices_stay_as_they_are(dtype: Any, shape: tuple[int, ...], method: Any) -> None:
    x = jnp.zeros(shape, dtype)
    ours = orthogonalize(x, method=method)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, x)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_norm_neither_underflows_nor_overflows(scale: float) -> None:
    x = gaussian(4, 6)
    np.testing.assert_allclose(orthogonalize(x * scale, eps=0.0), orthogonalize(x, eps=0.0), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype: Any) -> None:
    x = gaussian(4, 6, dtype=dtype)
    np.testing.assert_array_equal(orthogonalize(x), orthogonalize(x.astype(jnp.float32)).astype(dtype))
    lower = orthogonalize(x, compute_dtype=dtype)
    assert lower.dtype == dtype
    assert bool(jnp.any(lower != orthogonalize(x)))


def test_a_nan_stays_in_its_own_matrix() -> None:
    x = gaussian(3, 4, 6)
    spoiled = orthogonalize(x.at[1, 2, 3].set(jnp.nan))
    np.testing.assert_array_equal(spoiled[::2], orthogonalize(x)[::2])
    assert bool(jnp.isnan(spoiled[1]).all())


def test_leading_axes_are_batch_axes() -> None:
    with jax.enable_x64(True):
        x = double(2, 3, 4, 6)
        each = [[orthogonalize(x[i, j]) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(orthogonalize(x), np.array(each), atol=1e-13)


def test_equal_shapes_solved_in_a_loop_do_not_change() -> None:
    with jax.enable_x64(True):
        xs = [gaussian(4, 8, seed=i).astype(jnp.float64) for i in range(40)]
        together = Solver.of("keller", 5, "auto")(xs, 1e-7, 1.0)
        for x, o in zip(xs, together, strict=True):
            np.testing.assert_allclose(o, orthogonalize(x, method="auto"), atol=1e-12)


@pytest.mark.parametrize("preset", ["keller", "polar_express", "dion"])
def test_a_traced_number_of_steps(preset: str) -> None:
    x = gaussian(4, 6)
    run = jax.jit(lambda n: orthogonalize(x, ns_coeffs=preset, ns_steps=n))
    for steps in (1, 4, 10):
        np.testing.assert_allclose(run(steps), orthogonalize(x, ns_coeffs=preset, ns_steps=steps), atol=1e-5)


def test_complex_matrices_become_unitary() -> None:
    x = jax.lax.complex(gaussian(4, 6), gaussian(4, 6, seed=1))
    u = orthogonalize(x, ns_coeffs="polar_express", ns_steps=10, method="auto")
    np.testing.assert_allclose(u @ u.conj().T, np.eye(4), atol=1e-5)


def test_views_flatten_axes_and_split_fused_projections() -> None:
    with jax.enable_x64(True):
        kernel = double(3, 3, 4, 8)
        flat = orthogonalize(kernel.reshape(36, 8)).reshape(kernel.shape)
        np.testing.assert_allclose(orthogonalize(kernel, dimension_numbers=MatrixView((0, 1, 2), 3)), flat, atol=1e-13)
        same = orthogonalize(kernel, dimension_numbers=optax.contrib.MuonDimensionNumbers((0, 1, 2), -1))
        np.testing.assert_allclose(same, flat, atol=1e-13)
        experts = orthogonalize(double(4, 5, 6), dimension_numbers=MatrixView(0, 2, 1))
        np.testing.assert_allclose(experts[:, 1], orthogonalize(double(4, 5, 6)[:, 1]), atol=1e-13)
        fused = double(4, 10)
        ours = orthogonalize(fused, dimension_numbers=MatrixView(split=(4, 3, 3)))
        parts = [orthogonalize(part) for part in jnp.split(fused, [4, 7], axis=1)]
        np.testing.assert_allclose(ours, jnp.concatenate(parts, axis=1), atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"ns_coeffs": "kellr"}, "orthogonalize: no ns_coeffs 'kellr'; did you mean 'keller'"),
        ({"ns_coeffs": [1.0, 2.0]}, "orthogonalize: ns_coeffs must be a preset, a row"),
        ({"ns_coeffs": [(1.0, 2.0, 3.0), (1.0, 2.0)]}, "orthogonalize: ns_coeffs must be a preset, a row"),
        ({"ns_coeffs": ("a", "b", "c")}, "orthogonalize: ns_coeffs must be a preset, a row"),
        ({"ns_steps": 0}, r"orthogonalize: ns_steps must be in \[1, inf\), got 0"),
        ({"ns_steps": 2.5}, "orthogonalize: ns_steps must be a whole number, got 2.5"),
        ({"eps": -1.0}, r"orthogonalize: eps must be in \[0, inf\), got -1.0"),
        ({"norm_safety": 0.0}, r"orthogonalize: norm_safety must be in \(0, inf\), got 0.0"),
        ({"method": "qr"}, "orthogonalize: method must be one of"),
        ({"gram_restarts": (-1,)}, "orthogonalize: gram_restarts must be step numbers"),
        ({"gram_restarts": 2}, "orthogonalize: gram_restarts must be step numbers from 0, got 2"),
        ({"dimension_numbers": MatrixView(0, 2)}, r"orthogonalize: x of shape \(3, 4\) has axes -2 to 1"),
        ({"dimension_numbers": MatrixView(0, 0)}, r"orthogonalize: x of shape \(3, 4\) needs a view that names every"),
        ({"dimension_numbers": MatrixView(split=(1, 2))}, r"orthogonalize: x of shape \(3, 4\) has 4 outputs"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        orthogonalize(gaussian(3, 4), **arguments)


@pytest.mark.parametrize("arguments", [{"ns_steps": lambda step: 5}, {"eps": lambda step: 1e-7}])
def test_schedules_are_refused(arguments: dict[str, Any]) -> None:
    sentence = f"orthogonalize: {next(iter(arguments))} must be a number here, got the schedule"
    with pytest.raises(TypeError, match=sentence):
        orthogonalize(gaussian(3, 4), **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0,), r"num_steps must be in \[1, inf\), got 0"),
        ((2.5,), "num_steps must be a whole number, got 2.5"),
        ((3, 0.0), r"lower must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_arguments_of_polar_express_are_named(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^polar_express_coeffs: {sentence}"):
        polar_express_coeffs(*arguments)


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e38])
def test_no_scale_is_too_small_or_too_large(scale: float) -> None:
    x = gaussian(4, 6) / 4
    np.testing.assert_allclose(orthogonalize(scale * x, eps=0.0), orthogonalize(x, eps=0.0), atol=2e-6)


def test_half_precision_keeps_imaginary_parts() -> None:
    z = jax.lax.complex(gaussian(4, 6), gaussian(4, 6, seed=1))
    np.testing.assert_allclose(orthogonalize(z, compute_dtype=jnp.bfloat16), orthogonalize(z), rtol=1e-6)


@pytest.mark.parametrize(
    ("preset", "growth"),
    [("keller", 3.4445**3), ("polar_express_5", 8.156554524902461 * 4.042929935166739 * 3.8916678022926607)],
)
def test_the_growth_between_restarts(preset: str, growth: float) -> None:
    assert Solver.of(preset, 5, "auto").growth == pytest.approx(growth)


def test_vectors_and_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two axes"):
        orthogonalize(gaussian(3))
    with pytest.raises(TypeError, match="must be floating or complex, got int32"):
        orthogonalize(jnp.ones((2, 2), jnp.int32))
