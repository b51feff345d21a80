from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_zoo._core.quintics import PRESETS
from optax_zoo._core.views import MatrixView
from optax_zoo.matrix.normuon import normuon, scale_by_normuon
from tests.papers.matrix.test_orthogonalize import in_numpy


def gradients(steps: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, *shape))


def walk(tx: optax.GradientTransformationExtraArgs, g: Any, params: Any = None) -> list[Any]:
    with jax.enable_x64(True):
        g = jax.tree.map(jnp.asarray, g)
        at = jax.tree.map(lambda x: x[0], g) if params is None else params
        state, out = tx.init(at), []
        step = jax.jit(tx.update)
        for i in range(len(jax.tree.leaves(g)[0])):
            u, state = step(jax.tree.map(lambda x, i=i: x[i], g), state, at)
            out.append(jax.tree.map(np.asarray, u))
    return out


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (3, 5)])
@pytest.mark.parametrize(("scaling", "factor"), [("spectral", lambda m, n: (n / m) ** 0.5), (None, lambda m, n: 1.0)])
def test_equals_the_numpy_transcription(nesterov: bool, shape: tuple[int, int], scaling: Any, factor: Any) -> None:
    g = gradients(5, *shape)
    ours = walk(scale_by_normuon(0.9, 0.8, nesterov=nesterov, scaling=scaling), g)
    m, v = np.zeros(shape), np.zeros(shape[1])
    for t, u in enumerate(ours):
        m = 0.9 * m + g[t]
        o = in_numpy(g[t] + 0.9 * m if nesterov else m, PRESETS["polar_express_5"], 1e-8, 1.02)
        before = np.linalg.norm(o)
        v = 0.8 * v + 0.2 * np.mean(o**2, axis=0)
        o = o / (np.sqrt(v) + 1e-8)
        o = o * before / max(np.linalg.norm(o), 1e-8)
        np.testing.assert_allclose(u, factor(*shape) * o, rtol=1e-10)


def test_the_norm_is_that_of_the_orthogonal_matrix_at_every_step() -> None:
    g = gradients(4, 6, 4)
    arguments = {"nesterov": False, "ns_coeffs": "polar_express_5", "norm_safety": 1.02, "eps": 1e-8, "scaling": None}
    from optax_zoo.matrix.muon import scale_by_muon

    plain = walk(scale_by_muon(0.95, momentum_form="sum", **arguments), g)
    for u, o in zip(walk(scale_by_normuon(**arguments), g), plain, strict=True):
        np.testing.assert_allclose(np.linalg.norm(u), np.linalg.norm(o), rtol=1e-10)
        assert np.abs(u - o).max() > 1e-3


def test_with_a_constant_v_it_is_muon() -> None:
    from optax_zoo.matrix.muon import scale_by_muon

    g = gradients(3, 6, 4)
    tx = scale_by_normuon(b2=1.0)
    fixed = optax.GradientTransformationExtraArgs(
        lambda p: tx.init(p)._replace(v=jnp.ones((1, 4), jnp.float64)), tx.update
    )
    muon = scale_by_muon(
        momentum_form="sum",
        nesterov=False,
        ns_coeffs="polar_express_5",
        norm_safety=1.02,
        eps=1e-8,
        scaling="spectral",
    )
    for ours, theirs in zip(walk(fixed, g), walk(muon, g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_neurons_end_with_equal_updates() -> None:
    """Muon's updates of a tall matrix differ between its outputs; after normalisation they are alike."""
    g = gradients(1, 64, 8)[0] * np.logspace(0, -2, 8)
    first, *_ = walk(scale_by_normuon(), g[None])
    norms = np.linalg.norm(first, axis=0)
    np.testing.assert_allclose(norms, norms.mean(), rtol=1e-5)


def test_blocks_heads_layers_and_experts_are_matrices_of_their_own() -> None:
    g = gradients(3, 5, 12)
    views = {"fused": MatrixView(split=3, heads=2), "parts": MatrixView(1, 2, batch=0)}
    parts = g.reshape(3, 5, 6, 2).transpose(0, 2, 1, 3)
    for u in walk(scale_by_normuon(dimension_numbers=views), {"fused": g, "parts": parts}):
        np.testing.assert_allclose(u["fused"].reshape(5, 6, 2).transpose(1, 0, 2), u["parts"], rtol=1e-10)


def test_v_has_one_number_an_output() -> None:
    tx = scale_by_normuon(dimension_numbers={"conv": None, "heads": MatrixView(0, (1, 2))})
    state: Any = tx.init({"conv": jnp.ones((3, 3, 4, 8), jnp.bfloat16), "heads": jnp.ones((6, 2, 5))})
    assert jax.tree.map(jnp.shape, state.v) == {"conv": (1, 1, 1, 8), "heads": (1, 2, 5)}
    assert state.v["conv"].dtype == jnp.float32


def test_cautious_decay_spares_entries_that_the_update_moves_away_from_zero() -> None:
    g = gradients(1, 4, 3)
    params = gradients(1, 4, 3, seed=1)[0]
    plain, all_, some = (
        walk(normuon(0.1, weight_decay=wd, cautious_weight_decay=cautious), g, params)[0]
        for wd, cautious in ((0.0, False), (0.5, False), (0.5, True))
    )
    agrees = -plain * params >= 0
    assert agrees.any() and not agrees.all()
    np.testing.assert_allclose(some, np.where(agrees, all_, plain), rtol=1e-6)


def test_cautious_decay_is_that_of_vectors_too() -> None:
    """As in dion, whose AdamW takes the flag of its group."""
    params = jnp.array([1.0, -1.0])
    tx = normuon(0.1, cautious_weight_decay=True, adam_weight_decay=0.5)
    updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
    np.testing.assert_allclose(updates, [-0.15, -0.1], rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"b2": 1.5}, {"momentum": 1.0}, {"scaling": "x"}, {"norm_safety": 0.0}])
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^normuon: {next(iter(arguments))} must be"):
        normuon(0.1, **arguments)
