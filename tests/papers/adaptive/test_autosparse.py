"""AutoSparse: gradients of pruned weights, their annealing, and weights that come back while alpha is above 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

import optax_zoo as zoo

LOGIT = -1.0
THRESHOLD = 1 / (1 + np.exp(-LOGIT))
WEIGHTS = jnp.array([[0.5, -0.9, 0.1], [0.0, -0.2, 0.3]])


def gradients(alpha: float, logit: Array) -> tuple[Array, Array]:
    upstream = jnp.arange(1.0, 7.0).reshape(2, 3)
    return jax.grad(lambda w, s: jnp.sum(upstream * zoo.autosparse_weight(w, s, alpha)), argnums=(0, 1))(WEIGHTS, logit)


def test_the_forward_pass_is_a_soft_threshold() -> None:
    out = zoo.autosparse_weight(WEIGHTS, LOGIT, 0.5)
    expected = np.sign(WEIGHTS) * np.maximum(np.abs(WEIGHTS) - THRESHOLD, 0)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_pruned_weights_get_alpha_of_their_gradient(alpha: float) -> None:
    by_weight, by_logit = gradients(alpha, jnp.float32(LOGIT))
    upstream = np.arange(1.0, 7.0).reshape(2, 3)
    share = np.where(np.abs(WEIGHTS) > THRESHOLD, 1.0, alpha)
    np.testing.assert_allclose(by_weight, share * upstream, rtol=1e-6)
    sign = np.where(np.asarray(WEIGHTS) < 0, -1.0, 1.0)
    slope = THRESHOLD * (1 - THRESHOLD)
    np.testing.assert_allclose(by_logit, -slope * np.sum(share * sign * upstream), rtol=1e-5)


def test_alpha_zero_is_the_gradient_of_the_forward_pass() -> None:
    def soft(w: Array, s: Array) -> Array:
        return jnp.sum(jnp.square(jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s))))

    ours = jax.grad(lambda w, s: jnp.sum(jnp.square(zoo.autosparse_weight(w, s, 0.0))), (0, 1))(WEIGHTS, LOGIT)
    plain = jax.grad(soft, (0, 1))(WEIGHTS, LOGIT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, plain)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (2, 1), (2, 3)])
def test_thresholds_of_a_layer_a_channel_or_a_weight(shape: tuple[int, ...]) -> None:
    logits = jnp.linspace(-2.0, 0.0, int(np.prod(shape))).reshape(shape)
    by_weight, by_logit = gradients(0.4, logits)
    whole_weight, whole_logit = gradients(0.4, jnp.broadcast_to(logits, (2, 3)))
    np.testing.assert_allclose(by_weight, whole_weight, rtol=1e-6)
    assert by_logit.shape == shape
    reduced = jax.vjp(lambda s: jnp.broadcast_to(s, (2, 3)), logits)[1](whole_logit)[0]
    np.testing.assert_allclose(by_logit, reduced, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_dtypes_under_jit_with_a_traced_alpha(dtype: jnp.dtype) -> None:
    def loss(w: Array, s: Array, alpha: Array) -> Array:
        return jnp.sum(zoo.autosparse_weight(w, s, alpha).astype(jnp.float32))

    w, s = WEIGHTS.astype(dtype), jnp.float32(LOGIT)
    by_weight, by_logit = jax.jit(jax.grad(loss, argnums=(0, 1)))(w, s, jnp.float32(0.5))
    assert (by_weight.dtype, by_logit.dtype) == (dtype, jnp.float32)


def test_the_schedule_falls_from_alpha0_to_zero() -> None:
    schedule = zoo.gradient_annealing_schedule(0.75, 100)
    steps = np.arange(100)
    cosine = (1 + np.cos(np.pi * steps / 100)) / 2
    sigmoid = 1 - 1 / (1 + np.exp(6 - 12 * steps / 100))
    values = np.array([schedule(i) for i in steps])
    np.testing.assert_allclose(values, 0.75 * np.maximum(cosine, sigmoid), rtol=1e-5, atol=1e-7)
    assert np.all(np.diff(values) < 0)
    assert schedule(0) == 0.75
    assert schedule(100) == schedule(250) == 0.0
    np.testing.assert_allclose(zoo.gradient_annealing_schedule(0.75, 100, "cosine")(20), 0.75 * cosine[20], rtol=1e-6)
    np.testing.assert_allclose(zoo.gradient_annealing_schedule(0.75, 100, "sigmoid")(70), 0.75 * sigmoid[70], rtol=1e-5)


def test_the_schedule_serves_wherever_a_number_may_be_one() -> None:
    params = {"w": jnp.ones(3)}
    tx = zoo.ademamix(1e-3, alpha=zoo.gradient_annealing_schedule(0.75, 4))
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert jnp.all(jnp.isfinite(updates["w"]))


def train(schedule: optax.Schedule) -> tuple[Array, Array, Array]:
    """Least squares with ten relevant weights of forty, all pruned at the start: alive, relevant, the last loss."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(200, 40)), jnp.float32)
    target = jnp.where(jnp.arange(40) < 10, 1.5, 0.0)
    params = {"w": jnp.full(40, 0.1), "logit": jnp.float32(-1.0)}
    tx = optax.sgd(0.02)

    def loss(params: dict, alpha: Array) -> Array:
        sparse = zoo.autosparse_weight(params["w"], params["logit"], alpha)
        return jnp.mean(jnp.square(inputs @ (sparse - target)))

    def step(carry: tuple, i: Array) -> tuple:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, schedule(i)), state)
        params = optax.apply_updates(params, updates)
        return (params, state), zoo.autosparse_weight(params["w"], params["logit"], 0.0) != 0

    (params, _), alive = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(600))
    return alive, target != 0, loss(params, jnp.float32(0.0))


def test_annealed_gradients_revive_what_matters_and_leave_weights_pruned() -> None:
    alive, relevant, final = train(zoo.gradient_annealing_schedule(0.75, 300))
    assert not alive[0].any()
    assert alive[-1][relevant].all() and not alive[-1].all()
    assert final < 1e-3


def test_without_their_gradient_pruned_weights_stay_dead() -> None:
    alive, _, final = train(optax.constant_schedule(0.0))
    assert not alive.any() and final > 10


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"autosparse_weight: alpha must be in \[0, 1\], got 1.5"):
        zoo.autosparse_weight(WEIGHTS, LOGIT, 1.5)
    with pytest.raises(ValueError, match=r"threshold_logit of shape \(2,\) does not broadcast to w's \(2, 3\)"):
        zoo.autosparse_weight(WEIGHTS, jnp.zeros(2), 0.5)
    with pytest.raises(ValueError, match=r"threshold_logit of shape \(1, 2, 3\) does not broadcast"):
        zoo.autosparse_weight(WEIGHTS, jnp.zeros((1, 2, 3)), 0.5)
    with pytest.raises(TypeError, match="autosparse_weight: w must be real floating, got int32"):
        zoo.autosparse_weight(jnp.arange(3), LOGIT, 0.5)
    with pytest.raises(ValueError, match=r"gradient_annealing_schedule: alpha0 must be in \[0, 1\], got -0.1"):
        zoo.gradient_annealing_schedule(-0.1, 10)
    with pytest.raises(ValueError, match=r"gradient_annealing_schedule: total_steps must be in \[1, inf\), got 0"):
        zoo.gradient_annealing_schedule(0.5, 0)
    with pytest.raises(ValueError, match=r"kind must be one of .*; did you mean 'cosine'"):
        zoo.gradient_annealing_schedule(0.5, 10, "cosin")
