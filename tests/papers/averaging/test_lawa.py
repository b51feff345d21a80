"""LAWA: which checkpoints are averaged, on the device and on the host, and that the mean is ahead early on."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_zoo as zoo
from tests.laws.harness import default_promotion
from tests.support import problem, trajectory

GOLDEN = Path(__file__).parents[2] / "golden" / "lawa.basic.npz"
HOST_MEMORY = jax.device_put(jnp.zeros(()), jax.memory.Space.Host).sharding.memory_kind == "pinned_host"
PLACES = [{"host": True}] if HOST_MEMORY else []
FORMS: list[dict[str, bool]] = [{}, {"on_read": True}, *PLACES, *({**place, "on_read": True} for place in PLACES)]


def walk(steps: int = 24, **settings: Any) -> tuple[Any, Any, Any]:
    """First parameters, parameters and averages after each step, in float64."""
    params, gradients = problem(steps)
    with jax.enable_x64(True):
        trained, averaged = trajectory(zoo.with_lawa(optax.sgd(0.1), **settings), params, gradients)
    return params, trained, averaged


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    ("k", "freq", "start"),
    [(3, 2, 7), (2, 3, 20), (1, 4, 9), (5, 1, 0), (4, 5, 100)],
)
def test_the_mean_of_the_last_checkpoints(form: Any, k: int, freq: int, start: int) -> None:
    params, trained, averaged = walk(k=k, freq=freq, start=start, **form)
    for name, points in trained.items():
        expected, taken = params[name], []
        for t in range(1, 25):
            if t % freq == 0:
                taken.append(points[t - 1])
                expected = np.mean(taken[-k:], axis=0) if t >= start else expected
            np.testing.assert_allclose(averaged[name][t - 1], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_equals_the_authors_code(form: Any) -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    start, gradients, recorded = (
        {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}
        for prefix in ("p0/", "g/", "avg/")
    )
    with jax.enable_x64(True), default_promotion():
        inner = optax.sgd(**meta["extra"]["inner"]["kwargs"])
        _, averaged = trajectory(zoo.with_lawa(inner, **meta["call"], **form), start, gradients)
    for name, theirs in recorded.items():
        np.testing.assert_allclose(averaged[name], theirs, rtol=1e-9, atol=1e-12)


def test_one_checkpoint_is_the_latest() -> None:
    _, trained, averaged = walk(k=1, freq=4, start=0)
    jax.tree.map(lambda a, p: np.testing.assert_array_equal(a[3::4], p[3::4]), averaged, trained)


def test_a_long_ring_is_swa() -> None:
    params, gradients = problem(24)
    _, _, averaged = walk(k=24, freq=3, start=3)
    with jax.enable_x64(True):
        _, swa = trajectory(zoo.with_swa(optax.sgd(0.1), 3, 3), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[2:], b[2:], rtol=1e-12), averaged, swa)


def test_freq_and_start_may_be_traced_and_scheduled() -> None:
    _, _, fixed = walk(k=3, freq=4, start=10)
    params, gradients = problem(24)

    def traced(freq: Any) -> Any:
        tx = zoo.with_lawa(optax.sgd(0.1), 3, freq, lambda count: 10)
        return final(tx, params, gradients)[1]

    with jax.enable_x64(True):
        averaged = jax.jit(traced)(jnp.asarray(4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[-1], rtol=1e-12), averaged, fixed)


def final(tx: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
    """State and average after the last step."""

    def step(carry: Any, g: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), gradients)
    return state, zoo.eval_params(state, params)


def test_the_ring_has_the_parameters_dtype_or_its_own_and_the_mean_float32() -> None:
    params = {"w": jnp.ones(2, jnp.bfloat16), "z": jnp.ones(2, jnp.complex64), "n": jnp.asarray(3)}

    def dtypes(**settings: Any) -> list[str]:
        inner = optax.masked(optax.sgd(0.1), {"w": True, "z": True, "n": False})
        state = zoo.with_lawa(inner, 2, **settings).init(params)
        return [str(tree[name].dtype) for tree in (*state.ring, state.mean) for name in ("w", "z", "n")]

    mean = ["float32", "complex64", "int32"]
    assert dtypes() == 2 * ["bfloat16", "complex64", "int32"] + mean
    assert dtypes(buffer_dtype="float32") == 2 * mean + mean
    assert dtypes(buffer_dtype="bfloat16") == 2 * ["bfloat16", "complex64", "int32"] + mean


def test_a_narrow_ring_rounds_checkpoints_only() -> None:
    _, _, exact = walk(k=3, freq=2, start=2)
    _, trained, rounded = walk(k=3, freq=2, start=2, buffer_dtype="bfloat16")
    for name, points in trained.items():
        snapshots = [np.asarray(jnp.asarray(points[t], jnp.bfloat16), np.float64) for t in (19, 21, 23)]
        np.testing.assert_allclose(rounded[name][-1], np.mean(snapshots, axis=0), rtol=1e-6)
        assert np.abs(rounded[name][-1] - exact[name][-1]).max() > 1e-6


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_integer_leaves_are_the_last_checkpoints(form: Any) -> None:
    inner = optax.masked(optax.sgd(0.1), {"w": True, "n": False, "absent": False})
    tx = zoo.with_lawa(inner, 3, 2, 0, **form)
    params = {"w": jnp.ones(2), "n": jnp.asarray(10), "absent": None}
    gradients = {"w": jnp.ones((5, 2)), "n": jnp.ones(5, jnp.int32), "absent": None}
    _, averaged = final(tx, params, gradients)
    assert (averaged["n"].dtype, int(averaged["n"]), averaged["absent"]) == (jnp.int32, 14, None)


def test_on_read_keeps_no_mean_and_makes_no_difference() -> None:
    params, gradients = problem(24)
    states, averages = zip(
        *(final(zoo.with_lawa(optax.sgd(0.1), 3, 2, **form), params, gradients) for form in FORMS[:2]), strict=True
    )
    assert states[0].mean is not None and states[1].mean is None
    jax.tree.map(np.testing.assert_array_equal, *(state.ring for state in states))
    jax.tree.map(np.testing.assert_array_equal, *averages)


def kinds(tree: Any) -> set[str]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def matrix_on_every_device() -> tuple[Any, Any]:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return mesh, {"w": jax.device_put(jnp.arange(32.0).reshape(8, 4), rows)}


def host_state(**settings: Any) -> tuple[Any, Any]:
    """Sharded parameters, and the state after a few jitted, donating steps."""
    _, params = matrix_on_every_device()
    tx = zoo.with_lawa(optax.adam(0.1), 3, 2, 2, host=True, **settings)
    state = jax.jit(tx.init)(params)

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(5):
        params, state = jitted(params, state)
    return params, state


@pytest.mark.parametrize("on_read", [False, True])
def test_the_ring_in_the_memory_of_the_host(on_read: bool) -> None:
    if not HOST_MEMORY:
        with pytest.raises(ValueError, match="with_lawa: host=True needs a backend with memory of the kind 'pinned_h"):
            zoo.with_lawa(optax.sgd(0.1), host=True).init({"w": jnp.ones(2)})
        return
    with default_promotion():
        params, state = host_state(on_read=on_read)
    assert kinds(state.ring) == {"pinned_host"}
    assert kinds((state.mean, state.inner_state, zoo.eval_params(state, params))) == {"device"}
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state.ring)} == {PartitionSpec("data")}


def test_a_restored_ring_goes_back_to_the_host() -> None:
    params, gradients = problem(10)
    half = {name: g[:5] for name, g in gradients.items()}
    for form in FORMS:
        tx = zoo.with_lawa(optax.sgd(0.1), 3, 2, 2, **form)
        state, _ = final(tx, params, half)
        restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)
        assert kinds(restored) == {"device"}
        trained = jax.tree.map(lambda p, g: jnp.asarray(p - 0.1 * g.sum(axis=0), jnp.float32), params, half)
        ahead = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, trained), restored, trained)[1]
        expected = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, trained), state, trained)[1]
        assert kinds(ahead.ring) == kinds(state.ring)
        jax.tree.map(np.testing.assert_array_equal, ahead, expected)


def test_a_state_of_other_parameters_is_named() -> None:
    tx = zoo.with_lawa(optax.sgd(0.1), 2)
    state = tx.init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"with_lawa: at \['w'\] params has shape \(2,\) and the state's ring has"):
        tx.update({"w": jnp.ones(2)}, state, {"w": jnp.ones(2)})


def test_the_mean_is_ahead_early_on() -> None:
    """A noisy quadratic whose rate is annealed to 0: the mean is far better before the rate has fallen."""
    steps, curvature = 400, jnp.geomspace(0.05, 1.0, 20)
    noise = jax.random.normal(jax.random.key(0), (steps, 20))

    def annealed(count: Any) -> Any:
        return 0.4 * (1.0 + jnp.cos(jnp.pi * count.astype(float) / steps))

    tx = zoo.with_lawa(optax.sgd(annealed), 10, 10, 10)

    def step(carry: Any, e: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = tx.update(curvature * params + e, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (curvature @ params**2, curvature @ zoo.eval_params(state, params) ** 2)

    start = jnp.full(20, 3.0)
    _, (last, averaged) = jax.lax.scan(step, (start, tx.init(start)), noise)
    early = slice(110, 200)
    assert averaged[early].mean() < 0.4 * last[early].mean()
    assert last[-1] < last[early].min()


def test_what_cannot_be_is_refused() -> None:
    inner = optax.sgd(0.1)
    for settings, sentence in (
        ({"k": 0}, r"k must be in \[1, inf\), got 0"),
        ({"freq": 0}, r"freq must be in \[1, inf\), got 0"),
        ({"start": -1}, r"start must be in \[0, inf\), got -1"),
    ):
        with pytest.raises(ValueError, match=f"with_lawa: {sentence}"):
            zoo.with_lawa(inner, **settings)
    with pytest.raises(TypeError, match="with_lawa: 'int8' is not a floating dtype such as 'bfloat16'"):
        zoo.with_lawa(inner, buffer_dtype="int8")
    tx = zoo.with_lawa(inner)
    with pytest.raises(ValueError, match="with_lawa: needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_inside_shard_map_it_is_the_single_devices(form: Any) -> None:
    mesh, params = matrix_on_every_device()
    tx = zoo.with_lawa(optax.sgd(0.1), 2, 2, 2, **form)

    def steps(params: Any) -> Any:
        gradients = jax.tree.map(lambda p: jnp.stack([jnp.cos(i + p) for i in range(5)]), params)
        return final(tx, params, gradients)[1]

    rows = {"w": PartitionSpec("data")}
    sharded = jax.jit(jax.shard_map(steps, mesh=mesh, in_specs=(rows,), out_specs=rows))(params)
    np.testing.assert_allclose(sharded["w"], jax.jit(steps)(jax.device_get(params))["w"], rtol=1e-6)
