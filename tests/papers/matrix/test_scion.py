"""Scion: the authors' step, the ball, and who has which norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from tests.support import trajectory

P = PartitionSpec
SHAPES = {
    "body/kernel": (4, 6),
    "lm_head/kernel": (6, 3),
    "embed": (5, 4),
    "conv": (2, 3, 4, 5),
    "bias": (6,),
    "lm_head/bias": (3,),
}
STEPS = 4


def draw(*size: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(*size, *shape)) for name, shape in SHAPES.items()}


def in_numpy(name: str, m: np.ndarray) -> np.ndarray:
    """The authors' lmo, in PyTorch's layout: (out, in) and (out, in, height, width)."""

    def polar(x: np.ndarray) -> np.ndarray:
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        return u @ vt

    if name == "conv":
        w = m.transpose(3, 2, 0, 1)
        d_out, d_in, kh, kw = w.shape
        w = polar(w.reshape(d_out, -1)).reshape(w.shape) * (d_out / d_in) ** 0.5 / (kh * kw)
        return w.transpose(2, 3, 1, 0)
    if m.ndim == 1:
        return m / np.sqrt(np.mean(m**2))
    if name == "embed":
        return m / np.sqrt(np.mean(m**2, axis=1, keepdims=True))
    w = m.T
    d_out, d_in = w.shape
    return (np.sign(w) / d_in if "head" in name else (d_out / d_in) ** 0.5 * polar(w)).T


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_equals_the_numpy_transcription(constrained: bool, alpha: float) -> None:
    params, gradients = draw(), draw(STEPS, seed=1)
    rate, radius = 0.1, dict.fromkeys(SHAPES, 2.0) | {"lm_head/kernel": 30.0}
    with jax.enable_x64(True):
        tx = zoo.scion(rate, alpha, constrained, radius, method="svd", eps=0.0)
        ours, _ = trajectory(tx, params, gradients)
    for name, p in params.items():
        m = np.zeros_like(p)
        for i in range(STEPS):
            m = (1 - alpha) * m + alpha * gradients[name][i]
            p = (1 - rate if constrained else 1.0) * p - rate * radius[name] * in_numpy(name, m)
            np.testing.assert_allclose(ours[name][i], p, rtol=1e-9, atol=1e-12)


def test_the_iteration_is_keller_jordans() -> None:
    g = jnp.asarray(draw()["body/kernel"], jnp.float32)
    tx = zoo.scion(1.0, 1.0, radius=3.0, roles="linear", method="plain")
    ours, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(ours, -3.0 * np.sqrt(6 / 4) * zoo.orthogonalize(g), rtol=1e-5)


def test_constrained_weights_come_into_the_ball_and_stay() -> None:
    """Under the norms of `dualize`, whose "sign" lacks the factor of the inputs."""
    params = jax.tree.map(lambda p: 100 * p, {"w": draw()["body/kernel"], "b": draw()["bias"]})
    gradients = {"w": draw(150)["body/kernel"], "b": draw(150)["bias"]}
    with jax.enable_x64(True):
        walked = trajectory(zoo.scion(0.1, 1.0, True, 5.0, method="svd"), params, gradients)[0]
        for name, role in (("w", "linear"), ("b", "vector")):
            norms = np.array([zoo.atom_norm(jnp.asarray(p), role) for p in walked[name][::10]])
            assert norms[0] > 20 and (norms[10:] <= 5.0 * (1 + 1e-4)).all()


def test_sharded_leaves_equal_the_single_device() -> None:
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    params = {name: jnp.asarray(p, jnp.float32) for name, p in draw().items()}
    specs = {name: P(None, None, "a") if name == "conv" else P("a") for name in SHAPES} | {
        "embed": P(None, "a"),
        "lm_head/bias": P(),
        "lm_head/kernel": P("a"),
    }
    tx = zoo.scion(0.1, method="svd")

    def step(p: Any) -> Any:
        return tx.update(p, tx.init(p), p, param_specs=specs)[0]

    ours = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=specs))(params)
    expected = jax.jit(lambda p: tx.update(p, tx.init(p), p)[0])(params)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, atol=1e-6), ours, expected)

    sign = zoo.scion(0.1, roles="sign")
    with pytest.raises(ValueError, match=r"scion: the leaf at the root is one device's block.*param_specs"):
        jax.shard_map(lambda g: sign.update(g, sign.init(g))[0], mesh=mesh, in_specs=P("a"), out_specs=P("a"))(
            params["lm_head/kernel"]
        )


def test_roles_and_radii() -> None:
    g = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 2))}
    tx = zoo.scion(1.0, radius={"a": 2.0, "b": 3.0}, roles={"a": "sign", "b": "vector"})
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates["a"], np.full((4, 2), -0.5))
    np.testing.assert_allclose(updates["b"], np.full((2, 2), -3.0), rtol=1e-5)


def test_bad_input_is_refused() -> None:
    for arguments, sentence in (
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\], got 0.0"),
        ({"radius": -1.0}, r"radius must be in \[0, inf\), got -1.0"),
        ({"radius": {"w": -1.0}}, r"radius of the leaf at \['w'\] must be in \[0, inf\), got -1.0"),
        ({"ns_steps": 0}, r"ns_steps must be in \[1, inf\), got 0"),
    ):
        with pytest.raises(ValueError, match=f"^scion: {sentence}"):
            zoo.scion(0.1, **arguments)
    with pytest.raises(ValueError, match=r"scion: the leaf at \['w'\] of shape \(3,\) has the role 'sign'"):
        zoo.scion(0.1, roles="sign").init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"scion: radius has no entry for the leaf at \['w'\]"):
        tx = zoo.scion(0.1, radius={"v": 1.0})
        tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}))
    with pytest.raises(ValueError, match="scion: needs params"):
        tx = zoo.scion(0.1, constrained=True)
        tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}))
