from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_zoo._core.quintics import PRESETS
from optax_zoo._core.views import MatrixView
from optax_zoo.matrix.adago import adago, scale_by_adago
from optax_zoo.matrix.muon import muon, scale_by_muon
from tests.papers.matrix.test_normuon import gradients, walk
from tests.papers.matrix.test_orthogonalize import GOLDEN, in_numpy


def alphas(tx: optax.GradientTransformationExtraArgs, g: np.ndarray) -> np.ndarray:
    """The step size of every step, of a single matrix."""
    with jax.enable_x64(True):
        state: Any = tx.init(jnp.asarray(g[0]))
        step, out = jax.jit(tx.update), []
        for i in range(len(g)):
            _, state = step(jnp.asarray(g[i]), state, jnp.asarray(g[0]))
            out.append(np.asarray(optax.tree.get(state, "alpha")).item())
    return np.array(out)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("gamma", [10.0, 2.0])
@pytest.mark.parametrize("eps", [5e-4, 0.03])
def test_equals_the_numpy_transcription(nesterov: bool, gamma: float, eps: float) -> None:
    g, w = gradients(6, 5, 3), gradients(1, 5, 3, seed=1)[0]
    arguments: Any = {"gamma": gamma, "eps": eps, "v0": 0.1, "nesterov": nesterov, "ns_steps": 4, "ns_eps": 1e-3}
    ours = walk(adago(0.05, 0.9, weight_decay=0.1, **arguments), g, w)
    m, v_sq = np.zeros((5, 3)), 0.1**2
    for t, u in enumerate(ours):
        m = 0.9 * m + 0.1 * g[t]
        n = min(np.linalg.norm(g[t]), gamma)
        v_sq += n**2
        o = in_numpy(0.1 * g[t] + 0.9 * m if nesterov else m, PRESETS["keller"] * 4, 1e-3)
        np.testing.assert_allclose(u, -max(eps, 0.05 * n / v_sq**0.5) * o - 0.05 * 0.1 * w, rtol=1e-10, atol=1e-15)


def test_the_recorded_step_sizes_are_those_of_the_state() -> None:
    for case, arguments in (
        ("default", {"learning_rate": 0.05}),
        ("clip", {"learning_rate": 0.02, "gamma": 3.0, "eps": 0.002, "momentum": 0.9, "v0": 0.1, "ns_steps": 4}),
    ):
        with np.load(GOLDEN.parent / f"adago.{case}.npz", allow_pickle=False) as file:
            for leaf in ("w", "u", "s"):
                np.testing.assert_allclose(alphas(adago(**arguments), file[f"g/{leaf}"]), file[f"alpha/{leaf}"])


def test_a_constant_gradient_gives_steps_that_fall_with_the_root_of_their_number_down_to_the_floor() -> None:
    g = np.repeat(gradients(1, 4, 3), 40, axis=0)
    t = np.arange(1, 41)
    np.testing.assert_allclose(alphas(adago(0.05, eps=0.01), g), np.maximum(0.05 / np.sqrt(t), 0.01), rtol=1e-9)


def test_the_direction_is_muons() -> None:
    g = gradients(3, 4, 6)
    theirs = walk(scale_by_muon(nesterov=False, scaling=None), g)
    ours = walk(scale_by_adago(), g)
    ratios = [np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)]
    for a, b, ratio in zip(ours, theirs, ratios, strict=True):
        np.testing.assert_allclose(a, ratio * b, rtol=1e-9)
    norms = np.minimum(np.linalg.norm(g, axis=(1, 2)), 10.0)
    np.testing.assert_allclose(ratios, norms / np.sqrt(1e-12 + np.cumsum(norms**2)), rtol=1e-9)


def test_every_matrix_of_a_leaf_has_a_step_of_its_own() -> None:
    g = gradients(3, 5, 12) * np.repeat([1.0, 0.1, 3.0], 4)
    views = {"fused": MatrixView(split=3, heads=2), "parts": MatrixView(1, 2, batch=0)}
    parts = g.reshape(3, 5, 6, 2).transpose(0, 2, 1, 3)
    for u in walk(scale_by_adago(dimension_numbers=views), {"fused": g, "parts": parts}):
        np.testing.assert_allclose(u["fused"].reshape(5, 6, 2).transpose(1, 0, 2), u["parts"], rtol=1e-10)
    state: Any = scale_by_adago(dimension_numbers=views).init(
        jax.tree.map(jnp.float32, {"fused": g[0], "parts": parts[0]})
    )
    assert jax.tree.map(jnp.shape, state.alpha) == {"fused": (1, 6), "parts": (6, 1, 1)}


def test_without_gradient_the_step_is_the_floor_however_small_v0_is() -> None:
    params = {"w": jnp.ones((3, 2), jnp.float32)}
    for v0 in (1e-6, 1e-25):
        tx = adago(0.1, v0=v0, eps=1e-3)
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        assert not jnp.any(updates["w"])
        np.testing.assert_allclose(optax.tree_utils.tree_get(state, "alpha")["w"], 1e-3, rtol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_steps_adapt_to_the_noise(noise: float) -> None:
    """Near a minimum Muon circles at the distance of its step whatever the noise; AdaGO's steps shrink by themselves,
    and faster the larger the noisy gradients are beside the first."""
    draw = np.random.default_rng(0)
    target, noises = draw.normal(size=(6, 6)), draw.normal(size=(400, 6, 6))

    def final(tx: optax.GradientTransformationExtraArgs) -> float:
        def step(carry: Any, z: Any) -> Any:
            w, state = carry
            u, state = tx.update(w - jnp.asarray(target) + noise * z, state, w)
            return (optax.apply_updates(w, u), state), None

        with jax.enable_x64(True):
            start = jnp.zeros((6, 6))
            (w, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(noises)))()
        return float(np.linalg.norm(np.asarray(w) - target))

    assert final(adago(0.5, eps=1e-4)) < 0.5 * final(muon(0.5, nesterov=False, scaling=None))


def test_noisier_gradients_make_smaller_steps() -> None:
    signal = np.repeat(gradients(1, 4, 3), 50, axis=0)
    growing = signal + np.linspace(0, 5, 50)[:, None, None] * gradients(50, 4, 3, seed=1)
    calm, noisy = (alphas(adago(0.05, eps=0.0, gamma=100.0), g).cumsum()[-1] for g in (signal, growing[::-1]))
    assert noisy < 0.8 * calm


@pytest.mark.parametrize("arguments", [{"gamma": 0.0}, {"v0": 0.0}, {"eps": -1.0}, {"ns_eps": -1.0}])
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^adago: {next(iter(arguments))} must be"):
        adago(0.1, **arguments)
