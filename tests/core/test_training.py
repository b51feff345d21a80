"""The extra-argument convention, and the engine's promises that no law covers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from optax_zoo._core.hyper import Decay, StepSchedule, debias, ema

PARAMS = {"w": jnp.array([1.0, -2.0])}
BATCH = jnp.array([3.0, 5.0])


def loss(params: Any, batch: Any) -> Any:
    return jnp.sum(batch * params["w"] ** 2)


def recorder() -> tuple[optax.GradientTransformationExtraArgs, dict[str, Any]]:
    seen: dict[str, Any] = {}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.update(extra, updates=updates)
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update), seen


def test_closures_hold_value_gradient_and_hessian_products() -> None:
    given = zoo.closures(loss, PARAMS, BATCH)
    v = {"w": jnp.array([1.0, 1.0])}
    assert float(given["value"]) == 23.0
    np.testing.assert_allclose(given["grad"]["w"], [6.0, -20.0])
    np.testing.assert_allclose(given["grad_fn"](v)["w"], [6.0, 10.0])
    np.testing.assert_allclose(given["hvp_fn"](PARAMS, v)["w"], [6.0, 10.0])
    assert float(given["value_fn"](v)) == 8.0 and "aux" not in given


@pytest.mark.parametrize("has_aux", [False, True])
def test_a_training_step_passes_everything_on(has_aux: bool) -> None:
    tx, seen = recorder()
    step = zoo.train_step((lambda p, b: (loss(p, b), "aux")) if has_aux else loss, tx, has_aux=has_aux)
    key = jax.random.key(0)
    params, _, value, *aux = step(PARAMS, tx.init(PARAMS), BATCH, key=key)
    assert aux == (["aux"] if has_aux else []) and float(value) == 23.0
    assert set(seen) == {"updates", "value", "grad", "value_fn", "grad_fn", "hvp_fn", "key"}
    np.testing.assert_allclose(params["w"], PARAMS["w"] + seen["grad"]["w"])


def test_complex_parameters_descend() -> None:
    def distance(params: Any) -> Any:
        return jnp.sum(jnp.abs(params["z"] - (1 + 1j)) ** 2)

    tx = zoo.ademamix(0.05)
    params = {"z": jnp.array([0.5 - 2j])}
    state, step = tx.init(params), jax.jit(zoo.train_step(distance, tx))
    for _ in range(300):
        params, state, value = step(params, state)
    assert value < 0.05


def test_slow_averages_of_bfloat16_parameters_do_not_stall() -> None:
    tx = zoo.scale_by_ademamix()
    states = []
    for dtype in (jnp.float32, jnp.bfloat16):
        g = {"w": jnp.ones(2, dtype)}
        run = jax.jit(lambda s, g=g: jax.lax.fori_loop(0, 3000, lambda _, s: tx.update(g, s)[1], s))
        states.append(run(tx.init(g)))
    for slot in ("m2", "nu"):
        exact, half = (np.asarray(getattr(state, slot)["w"], np.float32) for state in states)
        np.testing.assert_allclose(half, exact, rtol=1e-5)


def test_a_callable_container_may_be_a_mask() -> None:
    import equinox as eqx

    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    mask = jax.tree.map(lambda x: x.ndim > 1, model)
    assert callable(mask)
    tx = zoo.ademamix(1.0, weight_decay=0.5, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, model)
    updates, _ = tx.update(zero, tx.init(model), model)
    np.testing.assert_allclose(updates.weight, -0.5 * model.weight)
    np.testing.assert_array_equal(updates.bias, 0)


def test_only_extra_args_makes_a_line_search_usable() -> None:
    search = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5))
    plain = zoo.train_step(loss, search)
    with pytest.raises(TypeError):
        plain(PARAMS, search.init(PARAMS), BATCH)
    tx = zoo.only_extra_args(search, "value", "grad", "value_fn")
    with jax.numpy_dtype_promotion("standard"):
        params, _, value = zoo.train_step(loss, tx)(PARAMS, tx.init(PARAMS), BATCH)
    assert loss(params, BATCH) < value


def test_gradients_may_be_absent() -> None:
    tx = zoo.ademamix(0.1)
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    updates, state = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params))
    assert updates["b"] is None and jax.tree.structure(state) == jax.tree.structure(tx.init(params))


def test_the_learning_rate_is_readable_from_the_state() -> None:
    tx = zoo.ademamix(optax.linear_schedule(1.0, 0.0, 4))
    state = tx.init(PARAMS)
    for expected in (1.0, 0.75):
        _, state = tx.update(PARAMS, state)
        assert float(optax.tree.get(state, "learning_rate")) == expected


def test_each_leaf_shape_is_traced_once() -> None:
    from typing import NamedTuple

    from optax_zoo._core.leafwise import leafwise

    class State(NamedTuple):
        count: Any

    shapes = []

    @leafwise(State)
    def tx(g: Any, s: Any, h: Any) -> Any:
        shapes.append(g.shape)
        return g, s

    tree = [jnp.ones((2, 3)), jnp.ones((4,)), jnp.ones((2, 3)), jnp.ones((4,), jnp.bfloat16)]
    jax.jit(tx.update)(tree, tx.init(tree))
    assert sorted(shapes) == [(2, 3), (4,), (4,)]


def test_a_decay_keeps_its_distance_from_one_in_float32() -> None:
    b, t = 0.9999999, jnp.float32(3)
    for form in (b, Decay(b, 1 - b)):
        np.testing.assert_allclose(ema(jnp.zeros(1), jnp.ones(1), form), 1e-7, rtol=1e-5)
        np.testing.assert_allclose(debias(form, t), 3e-7, rtol=1e-5)
    np.testing.assert_allclose(debias(jnp.float32(0.0), t), 1.0)


def test_plain_schedules_see_the_count_and_step_schedules_the_step() -> None:
    plain = zoo.ademamix(1.0, alpha=lambda count: 10.0 + count.astype(float), eps=1.0)
    stepped = zoo.ademamix(1.0, alpha=StepSchedule(lambda t: 9.0 + t.astype(float), "nine plus t"), eps=1.0)
    for tx in (plain, stepped):
        u, _ = tx.update(PARAMS, tx.init(PARAMS))
        fixed = zoo.ademamix(1.0, alpha=10.0, eps=1.0)
        np.testing.assert_allclose(u["w"], fixed.update(PARAMS, fixed.init(PARAMS))[0]["w"], rtol=1e-6)


def test_sums_and_scalars_serve_rules_with_a_norm() -> None:
    from typing import NamedTuple

    from optax_zoo._core.leafwise import leafwise

    class State(NamedTuple):
        count: Any
        largest: Any

    @leafwise(
        State,
        sums=lambda g, s, h: {"square": jnp.sum(g * g)},
        step=lambda h, s: {"largest": jnp.maximum(s.largest, jnp.sqrt(h.square))},
        largest=0.0,
    )
    def tx(g: Any, s: Any, h: Any) -> Any:
        return g / h.largest, s

    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, state = tx.update(grads, tx.init(grads))
    assert float(state.largest) == 5.0 and float(updates["a"][0]) == pytest.approx(0.6)
    updates, state = tx.update(jax.tree.map(lambda g: g / 5, grads), state)
    assert float(state.largest) == 5.0 and float(updates["b"][0]) == pytest.approx(0.16)
