"""AdaMomentum: its flags, step by step and in the limits that are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

B1, B2, EPS, LR = 0.8, 0.9, 1e-4, 0.02
NAMES = ("amsgrad", "rectify", "degenerated_to_sgd")
FLAGS = [dict(zip(NAMES, bits, strict=True)) for bits in itertools.product([0, 1], repeat=3)]


def definition(p: np.ndarray, gradients: np.ndarray, amsgrad: int, rectify: int, degenerated_to_sgd: int) -> np.ndarray:
    """The parameters after each step, in double precision."""
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    rho_inf, path = 2 / (1 - B2) - 1, []
    for t, g in enumerate(gradients, start=1):
        bias1, bias2 = 1 - B1**t, 1 - B2**t
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * m * m + EPS
        largest = np.maximum(largest, v)
        rho = rho_inf - 2 * t * B2**t / bias2
        if not rectify:
            u = m / bias1 / np.sqrt((largest if amsgrad else v) / bias2)
        elif rho >= 5:
            ratio = (rho - 4) / (rho_inf - 4) * (rho - 2) / rho * rho_inf / (rho_inf - 2)
            u = np.sqrt(bias2 * ratio) * m / bias1 / (np.sqrt(v) + EPS)
        else:
            u = degenerated_to_sgd * m / bias1
        p = p - LR * u
        path.append(p)
    return np.stack(path)


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(name for name, on in flags.items() if on) or "none")
def test_follows_its_definition(flags: dict[str, int]) -> None:
    params, gradients = problem(steps=20)
    fading = np.geomspace(1, 1e-2, 20)
    gradients = jax.tree.map(lambda g: g * fading.reshape(-1, *[1] * (g.ndim - 1)), gradients)
    on = {name: bool(bit) for name, bit in flags.items()}
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adamomentum(LR, B1, B2, EPS, **on), params, gradients)
    for name, p in params.items():
        np.testing.assert_allclose(ours[name], definition(p, gradients[name], **flags), rtol=1e-9)


def test_the_first_step_is_ten_times_adams() -> None:
    params, gradients = problem(steps=1)
    ours, _ = trajectory(zoo.adamomentum(1.0), params, gradients)
    for name, p in params.items():
        np.testing.assert_allclose(ours[name][0] - p, -10 * np.sign(gradients[name][0]), rtol=1e-5)


def test_without_momentum_it_is_adam() -> None:
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adamomentum(0.01, b1=0.0, eps=0.0), *problem())
        theirs = optax_trajectory(optax.adam(0.01, b1=0.0, eps=0.0), *problem())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), ours, theirs)


def test_under_pure_noise_steps_are_larger_than_adams() -> None:
    b1 = 0.9
    noise = jax.random.normal(jax.random.key(1), (400, 500))

    def last_steps(tx: optax.GradientTransformation) -> float:
        def step(state: object, g: jax.Array) -> tuple[object, jax.Array]:
            u, state = tx.update(g, state)
            return state, jnp.mean(u * u)

        return float(jnp.sqrt(jnp.mean(jax.lax.scan(step, tx.init(noise[0]), noise)[1][-50:])))

    with jax.numpy_dtype_promotion("standard"):
        adams = last_steps(optax.scale_by_adam(b1, 0.99))
    ratio = last_steps(zoo.scale_by_adamomentum(b1, 0.99)) / adams
    assert ratio == pytest.approx(np.sqrt((1 + b1) / (1 - b1)), rel=0.05)


def test_an_entry_without_gradient_stays() -> None:
    params, gradients = problem()
    zero = jax.tree.map(np.zeros_like, gradients)
    ours, _ = trajectory(zoo.adamomentum(1.0), params, zero)
    np.testing.assert_array_equal(ours["w"][-1], params["w"].astype(np.float32))


@pytest.mark.parametrize(("flags", "kept"), [({}, 1 - 0.1 * 0.5), ({"fixed_decay": True}, 1 - 0.5)])
def test_decoupled_decay(flags: dict[str, bool], kept: float) -> None:
    params, gradients = problem(steps=1)
    zero = jax.tree.map(np.zeros_like, gradients)
    ours, _ = trajectory(zoo.adamomentum(0.1, weight_decay=0.5, **flags), params, zero)
    np.testing.assert_allclose(ours["w"][0], params["w"] * kept, rtol=1e-6)


def test_coupled_decay_is_part_of_the_gradient() -> None:
    params, gradients = problem()
    ours, _ = trajectory(zoo.adamomentum(0.01, weight_decay=0.5, weight_decouple=False), params, gradients)
    parts = optax.chain(optax.add_decayed_weights(0.5), zoo.scale_by_adamomentum(), optax.scale(-0.01))
    theirs = optax_trajectory(parts, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_a_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^adamomentum: b2 must be in \[0, 1\), got 1$"):
        zoo.adamomentum(0.1, b2=1)
