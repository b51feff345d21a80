"""NT-ASGD: when it triggers, what it averages from then on, and what that gains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.papers.averaging.walks import walk

STEPS = 40
NAN = float("nan")


def trigger_step(metrics: Any, nonmono: int) -> int | None:
    """The step t whose metric triggers."""
    log: list[float] = []
    for t, metric in enumerate(metrics, start=1):
        if np.isnan(metric):
            continue
        older = log[: len(log) - nonmono]
        if len(log) > nonmono and metric > min(older):
            return t
        log.append(metric)
    return None


def mean_since(points: np.ndarray, trigger: int | None, drop_first: bool) -> np.ndarray:
    """What to evaluate after each step."""
    averages = []
    for t in range(1, len(points) + 1):
        behind = points[trigger:t] if trigger is not None and t > trigger else points[t - 1 : t]
        averages.append(behind[1 if drop_first and len(behind) > 1 else 0 :].mean(axis=0))
    return np.stack(averages)


def assert_follows_the_box(metrics: Any, nonmono: int, drop_first: bool, trigger: int | None) -> None:
    assert trigger_step(metrics, nonmono) == trigger
    tx = zoo.nt_asgd(0.1, nonmono=nonmono, weight_decay=0.3, drop_first=drop_first)
    _, decayed, _ = walk(optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1)), len(metrics))
    _, trained, averaged = walk(tx, len(metrics), value=np.asarray(metrics))
    for name, points in trained.items():
        np.testing.assert_allclose(points, decayed[name], rtol=1e-11)
        np.testing.assert_allclose(averaged[name], mean_since(points, trigger, drop_first), rtol=1e-11)


@pytest.mark.parametrize("drop_first", [True, False])
@pytest.mark.parametrize(
    ("nonmono", "metrics", "trigger"),
    [
        (0, [3.0, 2.0, 2.0, 1.0, 1.5, 9.0, 0.0, 9.0], 5),
        (1, [3.0, 2.0, 4.0, 1.0, 1.5, 2.5, 0.0], 3),
        (1, [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 0.0], 6),
        (2, [3.0, 2.0, 2.5, 2.2, 2.1, 0.0, 0.0], 5),
        (3, [1.0, 2.0, 2.5, 2.2, 2.1, 0.0, 0.0], 5),
        (3, [1.0, 2.0, 2.5, 0.2], None),
        (0, [np.inf, 2.0, np.inf, 1.0, 1.0], 3),
        (5, [NAN, 3.0, NAN, NAN, 4.0], None),
        (1, [NAN, 3.0, NAN, 3.5, NAN, NAN, 3.1, 0.0, NAN, 0.0], 7),
    ],
)
def test_the_box(nonmono: int, metrics: list[float], trigger: int | None, drop_first: bool) -> None:
    assert_follows_the_box(metrics, nonmono, drop_first, trigger)


@pytest.mark.parametrize("nonmono", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_box_on_noisy_metrics(nonmono: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    metrics = np.geomspace(4.0, 1.0, STEPS) + 0.6 * draw.normal(size=STEPS)
    metrics[draw.uniform(size=STEPS) < 0.3] = np.nan
    assert_follows_the_box(metrics, nonmono, True, trigger_step(metrics, nonmono))


@pytest.mark.parametrize("nonmono", [0, 1, 5])
def test_metrics_that_always_fall_never_trigger(nonmono: int) -> None:
    _, trained, averaged = walk(zoo.nt_asgd(0.1, nonmono=nonmono), STEPS, value=np.linspace(5.0, 1.0, STEPS))
    jax.tree.map(np.testing.assert_array_equal, averaged, trained)


@pytest.mark.parametrize("absent", [{}, {"value": None}, {"value": NAN}, {"value": jnp.nan}])
def test_an_absent_metric_is_no_check(absent: Any) -> None:
    tx = zoo.nt_asgd(0.1, nonmono=0)
    params = jnp.ones(2)
    state = tx.init(params)
    for given in ({"value": 1.0}, absent, absent):
        _, state = tx.update(jnp.ones(2), state, params, **given)
    assert (state.metrics, state.triggered) == (1, 0)
    _, state = tx.update(jnp.ones(2), state, params, value=2)
    assert state.triggered == 1


def test_the_trigger_acts_from_the_next_step_and_stays() -> None:
    tx = zoo.nt_asgd(0.1, nonmono=0)
    params = jnp.ones(2)
    state = tx.init(params)
    seen = []
    for metric in (1.0, 2.0, 0.5, 0.4, NAN):
        updates, state = tx.update(jnp.ones(2), state, params, value=metric)
        params = optax.apply_updates(params, updates)
        seen.append((int(state.triggered), int(state.averaged), int(state.metrics)))
    assert seen == [(0, 0, 1), (1, 0, 2), (1, 1, 2), (1, 2, 2), (1, 3, 2)]
    np.testing.assert_allclose(zoo.eval_params(state, params), (0.6 + 0.5) / 2, rtol=1e-6)


@pytest.mark.parametrize(("nonmono", "size"), [(0, 1), (1, 1), (5, 5)])
def test_only_the_last_metrics_are_kept(nonmono: int, size: int) -> None:
    assert zoo.nt_asgd(0.1, nonmono=nonmono).init(jnp.ones(2)).recent.shape == (size,)


def test_bfloat16_parameters_keep_a_float32_mean() -> None:
    tx = zoo.nt_asgd(0.1, nonmono=0)
    params = jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    for i, metric in enumerate((1.0, 2.0, *6 * [NAN])):
        updates, state = tx.update(jnp.full(3, 0.1 * (i + 1), jnp.bfloat16), state, params, value=metric)
        params = optax.apply_updates(params, updates)
    assert (updates.dtype, state.mean.dtype) == (jnp.bfloat16, jnp.float32)
    assert not np.array_equal(state.mean, state.mean.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(zoo.eval_params(state, params), state.mean.astype(jnp.bfloat16))


def test_it_triggers_by_itself_and_beats_the_last_iterate_and_the_average_from_the_start() -> None:
    noise = jax.random.normal(jax.random.key(0), (1000, 50))
    curvature = jnp.asarray(np.geomspace(0.02, 1.0, 50), jnp.float32)

    def loss(params: Any) -> Any:
        return jnp.sum(curvature * jnp.square(params))

    def run(tx: optax.GradientTransformation, checks: int = 10) -> tuple[Any, Any]:
        def step(carry: Any, given: Any) -> tuple[Any, None]:
            params, state = carry
            i, e = given
            metric = jnp.where(i % checks == 0, loss(params), jnp.nan)
            updates, state = optax.with_extra_args_support(tx).update(
                curvature * (params - e), state, params, value=metric
            )
            return (optax.apply_updates(params, updates), state), None

        start = jnp.full(50, 10.0)
        return jax.lax.scan(step, (start, tx.init(start)), (jnp.arange(1000), noise))[0]

    params, state = run(zoo.nt_asgd(0.5, nonmono=5))
    from_the_start = zoo.eval_params(run(zoo.with_polyak(optax.sgd(0.5)))[1], params)
    assert 50 < int(state.count) - int(state.averaged) < 500
    assert loss(zoo.eval_params(state, params)) < 0.3 * min(loss(params), loss(from_the_start))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nt_asgd: nonmono must be in \[0, inf\), got -1"):
        zoo.nt_asgd(0.1, nonmono=-1)
    with pytest.raises(ValueError, match=r"nt_asgd: weight_decay must be in \[0, inf\), got -0.1"):
        zoo.nt_asgd(0.1, weight_decay=-0.1)
    tx = zoo.nt_asgd(0.1)
    with pytest.raises(ValueError, match="nt_asgd: needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
