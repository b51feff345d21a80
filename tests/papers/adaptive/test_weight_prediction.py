"""XGrad: the base optimizer, gradients at predicted weights, and what the prediction is worth."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from optax_zoo.adaptive.weight_prediction import predicted_params, weight_prediction
from tests.laws.harness import default_promotion
from tests.support import optax_trajectory, problem, trajectory

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("case", ["adam", "adamw_s2", "sgdm"])
def test_gradients_are_wanted_where_the_authors_code_wants_them(case: str) -> None:
    with np.load(GOLDEN / f"weight_prediction.{case}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    call = json.loads(str(arrays["meta"]))["call"]
    parts = {
        prefix: {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        for prefix in ("p0/", "g/", "phat/")
    }
    with jax.enable_x64(True):
        tx = weight_prediction(**call)

        def step(carry: Any, g: Any) -> Any:
            params, state = carry
            point = predicted_params(state, params)
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), point

        start = jax.tree.map(jnp.asarray, parts["p0/"])
        _, points = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), parts["g/"]))()
        for leaf, recorded in parts["phat/"].items():
            np.testing.assert_allclose(points[leaf], recorded, rtol=1e-9, atol=1e-12)


BASES: dict[str, tuple[dict[str, Any], optax.GradientTransformation]] = {
    "adam": ({}, optax.adam(0.01)),
    "adam, L2": (
        {"b1": 0.8, "b2": 0.99, "eps": 1e-3, "weight_decay": 0.1},
        optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.01, 0.8, 0.99, 1e-3)),
    ),
    "adamw": ({"base": "adamw"}, optax.adamw(0.01, weight_decay=0.01)),
    "sgdm": (
        {"base": "sgdm", "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
        optax.chain(optax.add_decayed_weights(0.1), optax.scale(0.7), optax.sgd(0.01, 0.8)),
    ),
    "lion, decoupled": (
        {"base": optax.scale_by_lion(), "weight_decay": 0.1},
        optax.chain(optax.scale_by_lion(), optax.add_decayed_weights(0.1), optax.scale(-0.01)),
    ),
}


@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("base", BASES)
def test_the_weights_follow_the_base_optimizer(base: str, num_steps: int) -> None:
    arguments, expected = BASES[base]
    params, gradients = problem()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, evaluated = trajectory(weight_prediction(0.01, num_steps=num_steps, **arguments), params, gradients)
        theirs = optax_trajectory(expected, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, evaluated)


@pytest.mark.parametrize("base", ["adam", "adamw", "sgdm", optax.scale_by_rms(0.9)])
def test_the_prediction_follows_the_last_direction_at_the_rate_to_come(base: Any) -> None:
    params, gradients = jax.tree.map(jnp.asarray, problem(steps=3))
    rates = jnp.asarray([0.1, 0.05, 0.025, 0.0025])

    def schedule(count: Any) -> jax.Array:
        return rates[count]

    tx = weight_prediction(schedule, base, num_steps=2, weight_decay=0.0)
    state = tx.init(params)
    jax.tree.map(np.testing.assert_array_equal, predicted_params(state, params), params)
    for i in range(3):
        with default_promotion():
            updates, state = tx.update(jax.tree.map(lambda g, i=i: g[i], gradients), state, params)
        params = optax.apply_updates(params, updates)
        ahead = jax.tree.map(lambda u, i=i: 2 * u * schedule(i + 1) / schedule(i), updates)
        expected = optax.apply_updates(params, ahead)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            predicted_params(state, params),
            expected,
        )


def test_weight_decay_is_not_predicted() -> None:
    params = {"w": jnp.ones(3)}
    tx = weight_prediction(0.1, "adamw", weight_decay=0.5)
    updates, state = tx.update({"w": jnp.zeros(3)}, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    assert np.all(params["w"] < 1)
    np.testing.assert_array_equal(predicted_params(state, params)["w"], params["w"])


def test_without_eps_nothing_is_predicted_before_the_first_step() -> None:
    params = {"w": jnp.ones(3)}
    state = weight_prediction(0.1, eps=0.0).init(params)
    np.testing.assert_array_equal(predicted_params(state, params)["w"], params["w"])


def test_nesterov_momentum_by_prediction_calms_a_stiff_valley() -> None:
    """Momentum whose gradient is taken ahead brakes before it overshoots; momentum itself swings across the valley."""
    curvature = jnp.array([1.0, 100.0])

    def loss(params: Any) -> Any:
        return 0.5 * jnp.sum(curvature * params["w"] ** 2)

    def left(num_steps: int) -> float:
        tx = weight_prediction(0.009, "sgdm", num_steps=num_steps, momentum=0.95)
        params = {"w": jnp.ones(2)}
        step = zoo.train_step(loss, tx)

        def body(carry: Any, _: Any) -> Any:
            params, state, value = step(*carry)
            return (params, state), value

        (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=100)
        return float(loss(params))

    assert left(1) < 0.1 * left(0)


def test_a_training_loop_needs_no_change() -> None:
    params = {"w": jnp.array([1.0, -1.0])}

    def loss(params: Any) -> Any:
        return jnp.sum(params["w"] ** 2)

    tx = weight_prediction(0.1, num_steps=4)
    step = jax.jit(zoo.train_step(loss, tx))
    after, state, _ = step(params, tx.init(params))
    point = predicted_params(state, after)
    assert not np.allclose(point["w"], after["w"])
    _, _, value = step(after, state)
    np.testing.assert_allclose(value, loss(point), rtol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"weight_prediction: base must be one of 'adam', 'adamw', 'sgdm', got 'adan'; did"
    ):
        weight_prediction(0.1, "adan")
    with pytest.raises(ValueError, match=r"weight_prediction: num_steps must be in \[0, inf\), got -1"):
        weight_prediction(0.1, num_steps=-1)
    with pytest.raises(ValueError, match=r"weight_prediction: dampening must be in \[0, 1\), got 1"):
        weight_prediction(0.1, "sgdm", dampening=1)
