"""The monitor: what it measures, that it touches nothing, and that it works wherever an optimizer does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import optax_zoo as zoo
from optax_zoo.diagnostics.monitor import MonitorState, monitor, monitor_values
from tests.laws.harness import default_promotion, make_params, matrix_mesh, row_specs
from tests.support import problem, trajectory

PARAMS = {"w": jnp.array([[3.0, -4.0], [0.0, 5.0]]), "b": jnp.array([1.0, 2.0])}
NAMES = set(MonitorState._fields[1:-1])


def values(tx: optax.GradientTransformation, *gradients: Any, params: Any = None) -> dict[str, float]:
    """What the monitor says after updates with these gradients."""
    state = tx.init(gradients[0])
    for g in gradients:
        _, state = jax.jit(tx.update)(g, state, params)
    return {name: float(x) for name, x in monitor_values(state).items()}


def rms(tree: Any) -> float:
    return float(np.sqrt(np.mean(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) ** 2)))


def test_root_mean_squares_of_gradients_updates_and_parameters() -> None:
    g = jax.tree.map(lambda p: 3 * p + 1, PARAMS)
    seen = values(monitor(optax.sgd(0.1)), g, params=PARAMS)
    assert seen["gradient_rms"] == pytest.approx(rms(g))
    assert seen["update_rms"] == pytest.approx(0.1 * rms(g))
    assert seen["param_rms"] == pytest.approx(rms(PARAMS))
    assert seen["update_ratio"] == pytest.approx(0.1 * rms(g) / rms(PARAMS))


def test_without_parameters_their_numbers_are_zero() -> None:
    seen = values(monitor(optax.clip(1.0)), PARAMS)
    assert seen["param_rms"] == seen["update_ratio"] == 0
    assert values(monitor(optax.sgd(0.1)), PARAMS, params=jax.tree.map(jnp.zeros_like, PARAMS))["update_ratio"] == 0


def test_clipping_is_seen_by_steps_and_by_entries() -> None:
    small = jax.tree.map(lambda p: 0.1 * p, PARAMS)
    seen = values(monitor(optax.clip(3.5)), small, PARAMS, small, PARAMS)
    assert seen["clip_rate"] == 0.5 and seen["clipped_share"] == pytest.approx(2 / 6)
    seen = values(monitor(optax.clip(3.5)), PARAMS, PARAMS, small)
    assert seen["clip_rate"] == pytest.approx(2 / 3) and seen["clipped_share"] == 0
    by_norm = monitor(optax.clip_by_global_norm(1.0))
    assert values(by_norm, PARAMS)["clipped_share"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_is_no_clipping(dtype: Any) -> None:
    g = jax.tree.map(lambda p: p.astype(dtype), PARAMS)

    def jitter(size: float) -> optax.GradientTransformation:
        eps = float(jnp.finfo(dtype).eps)
        return optax.stateless(lambda u, p: jax.tree.map(lambda x: (x * (1 + size * eps)).astype(dtype), u))

    assert values(monitor(jitter(2)), g)["clip_rate"] == 0
    assert values(monitor(jitter(50)), g)["clip_rate"] == 1


def test_not_a_number_and_infinity() -> None:
    bad = {"w": PARAMS["w"], "b": jnp.array([jnp.nan, jnp.inf])}
    assert values(monitor(optax.identity()), bad)["clip_rate"] == 0
    assert values(monitor(optax.zero_nans()), bad)["clipped_share"] == pytest.approx(1 / 6)
    assert values(monitor(optax.clip(10.0)), bad)["clipped_share"] == pytest.approx(1 / 6)
    for decay in (0.0, 0.9):
        assert not np.isfinite(values(monitor(optax.identity(), decay), PARAMS, bad)["gradient_rms"])
        healed = values(monitor(optax.identity(), decay), PARAMS, bad, PARAMS)["gradient_rms"]
        assert healed == pytest.approx(rms(PARAMS))


def test_frozen_entries_are_counted() -> None:
    freeze = optax.masked(optax.set_to_zero(), {"w": False, "b": True})
    assert values(monitor(freeze), PARAMS)["frozen_share"] == pytest.approx(3 / 6)


def test_moving_averages_start_at_the_first_step() -> None:
    large, small = PARAMS, jax.tree.map(lambda p: 0.1 * p, PARAMS)
    seen = values(monitor(optax.clip(3.5), decay=0.75), large, small, small)
    kept = 0.75**2
    assert seen["gradient_rms"] == pytest.approx(rms(large) * (kept + 0.1 * (1 - kept)))
    assert seen["clip_rate"] == pytest.approx(kept)
    assert seen["clipped_share"] == pytest.approx(kept * 2 / 6)
    schedule = monitor(optax.clip(3.5), decay=lambda count: jnp.where(count < 2, 0.75, 0.0))
    assert values(schedule, large, small, small)["gradient_rms"] == pytest.approx(0.1 * rms(large))


def test_nothing_else_changes() -> None:
    params, gradients = problem()
    plain, watched = (trajectory(tx, params, gradients)[0] for tx in (zoo.ademamix(0.1), monitor(zoo.ademamix(0.1))))
    jax.tree.map(np.testing.assert_array_equal, plain, watched)


def test_extra_arguments_reach_the_inner_transformation() -> None:
    tx = monitor(optax.polyak_sgd(), 0.5)
    with default_promotion():
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=2.0)
    assert np.any(updates["w"] != 0)


def test_several_monitors_have_keys_of_their_own() -> None:
    tx = monitor(optax.chain(monitor(optax.clip(3.5)), optax.scale(-0.1), monitor(optax.identity())))
    seen = values(tx, PARAMS)
    assert set(seen) == {f"{i}/{name}" for i in range(3) for name in NAMES}
    assert seen["0/gradient_rms"] == seen["1/gradient_rms"] == pytest.approx(rms(PARAMS))
    assert seen["0/update_rms"] == seen["2/update_rms"] == pytest.approx(0.1 * seen["1/update_rms"])


@pytest.mark.parametrize(
    "nest",
    {
        "chain": lambda tx: optax.chain(optax.identity(), tx),
        "partition": lambda tx: optax.partition({"all": tx}, {"w": "all", "b": "all"}),
        "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
        "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
        "with_ema": zoo.with_ema,
        "inject_hyperparams": lambda tx: optax.inject_hyperparams(monitor)(optax.clip(3.5), decay=0.0),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_found_through(nest: Any) -> None:
    expected = values(monitor(optax.clip(3.5)), PARAMS, params=PARAMS)
    with default_promotion():
        seen = values(nest[1](monitor(optax.clip(3.5))), PARAMS, params=PARAMS)
    assert set(seen) == NAMES and seen == pytest.approx(expected)
    assert monitor_values(optax.sgd(0.1).init(PARAMS)) == {}


def test_masked_and_absent_leaves_do_not_count() -> None:
    expected = values(monitor(optax.clip(3.5)), {"w": PARAMS["w"]}, params={"w": PARAMS["w"]})
    with default_promotion():
        masked = values(optax.masked(monitor(optax.clip(3.5)), {"w": True, "b": False}), PARAMS, params=PARAMS)
    absent = values(monitor(optax.clip(3.5)), {"w": PARAMS["w"], "b": None}, params=PARAMS)
    assert masked == pytest.approx(expected) and absent == pytest.approx(expected)
    for empty in ({}, {"none": None}, {"rows": jnp.zeros((0, 3))}):
        assert set(values(monitor(optax.identity()), empty, params=empty).values()) == {0.0}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_scalars_keep_their_dtypes(dtype: Any) -> None:
    params = {"w": 200 * PARAMS["w"].astype(dtype), "n": jnp.ones(2, jnp.int32)}
    tx = monitor(optax.identity())
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    assert updates is params
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert float(after.gradient_rms) == pytest.approx(200 * rms(PARAMS["w"]), rel=1e-2)


def test_under_scan_and_donation() -> None:
    tx = monitor(optax.chain(optax.clip(3.5), optax.sgd(0.1, 0.9)), 0.5)

    def step(carry: Any, scale: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda p: scale * p, PARAMS), state, params)
        return (optax.apply_updates(params, updates), state), monitor_values(state)

    scales = jnp.array([1.0, 0.1, 2.0])
    _, scanned = jax.jit(lambda: jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), scales))()
    jitted = jax.jit(step, donate_argnums=0)
    carry = jax.tree.map(jnp.copy, (PARAMS, tx.init(PARAMS)))
    for i, scale in enumerate(scales):
        carry, seen = jitted(carry, scale)
        for name, value in seen.items():
            np.testing.assert_allclose(scanned[name][i], value, rtol=1e-6)


def test_a_sharded_tree_is_measured_as_a_whole() -> None:
    params = make_params()
    tx = monitor(optax.chain(optax.clip(0.5), optax.scale(-0.1)))
    specs = row_specs(params)
    state_specs = jax.tree.map(lambda _: PartitionSpec(), tx.init(params))
    sharded = jax.shard_map(
        tx.update, mesh=matrix_mesh(), in_specs=(specs, state_specs, specs), out_specs=(specs, state_specs)
    )
    _, together = jax.jit(sharded)(params, tx.init(params), params)
    _, alone = tx.update(params, tx.init(params), params)
    for name, value in monitor_values(alone).items():
        np.testing.assert_allclose(monitor_values(together)[name], value, rtol=1e-6, err_msg=name)
    assert float(alone.clip_rate) == 1


def test_optax_sees_no_parameters_in_the_scalars() -> None:
    tx = monitor(optax.sgd(0.1, 0.9))
    state = tx.init(PARAMS)
    doubled = optax.tree_map_params(tx, lambda x: x + 1, state)
    assert monitor_values(doubled) == monitor_values(state)
    np.testing.assert_array_equal(optax.tree.get(doubled, "trace")["b"], 1)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"monitor: inner must be an optax.GradientTransformation, got 1.0"):
        monitor(1.0)
    with pytest.raises(ValueError, match=r"monitor: decay must be in \[0, 1\], got 1.5"):
        monitor(optax.identity(), 1.5)
    with pytest.raises(TypeError, match=r"monitor: no argument 'decays'; did you mean 'decay'"):
        monitor(optax.identity(), decays=0.5)
