"""Subset-Norm: its two limits, how leaves are cut into subsets, AdaGrad's form, memory, decay, sharded leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

LEAF = (6, 4)


def moment(subset_size: Any, shape: tuple[int, ...] = LEAF) -> tuple[int, ...]:
    """The shape of what is kept of the squares of one leaf."""
    return optax.tree.get(zoo.adamw_sn(subset_size=subset_size).init({"w": jnp.ones(shape)}), "v")["w"].shape


def adam_with_eps_on_the_uncorrected_root(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
    def update(g: Any, state: Any, params: Any = None) -> Any:
        t, m, v = state
        t = t + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)
        gain = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        return jax.tree.map(lambda m, v: gain * m / (jnp.sqrt(v) + eps), m, v), (t, m, v)

    def init(params: Any) -> Any:
        return jnp.zeros(()), optax.tree.zeros_like(params), optax.tree.zeros_like(params)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("subset_size", [1, None, lambda path, leaf: None, {"w": 1, "b": None}])
def test_subsets_of_one_entry_are_adam_with_eps_on_the_uncorrected_root(subset_size: Any) -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.adamw_sn(0.01, eps=1e-3, subset_size=subset_size), params, gradients)
        adam = optax.chain(adam_with_eps_on_the_uncorrected_root(eps=1e-3), optax.scale_by_learning_rate(0.01))
        theirs = optax_trajectory(adam, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, theirs)


def test_one_subset_a_leaf_averages_the_squared_norm() -> None:
    _, gradients = problem()
    tx = zoo.scale_by_subset_norm(b2=0.9, subset_size=10**9)
    state = tx.init({"w": jnp.ones((4, 3))})
    expected = 0.0
    for g in jnp.asarray(gradients["w"], jnp.float32):
        _, state = tx.update({"w": g}, state)
        expected = 0.9 * expected + 0.1 * float(np.sum(np.square(g)))
        np.testing.assert_allclose(state.v["w"], [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("subset_size", "shape", "expected"),
    [
        (4, LEAF, (6,)),
        (5, LEAF, (6,)),  # 4 is the largest divisor of 24 up to 5
        (1000, LEAF, (1,)),
        (-1, LEAF, (6,)),  # sqrt(24) = 4.9
        (-2, LEAF, (12,)),
        (-3, LEAF, LEAF),
        (-2, (3,), (3,)),  # int(sqrt(3) / 2) = 0
        (7, (10,), (2,)),
        (6, (7, 1), (7, 1)),  # a prime
        ("heuristics", LEAF, (6, 1)),
        ("heuristics", (4, 4), (4, 1)),
        ("heuristics", (3, 5), (1, 5)),
        ("heuristics", (5,), (5,)),
        ("heuristics", (2, 3, 4), (2, 3, 4)),
        (None, LEAF, LEAF),
        (4, (), ()),
        (4, (0, 3), (0, 3)),
    ],
)
def test_subsets_are_those_of_the_paper(subset_size: Any, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert moment(subset_size, shape) == expected


def test_sizes_may_differ_between_leaves() -> None:
    params = {"a": {"kernel": jnp.ones(LEAF), "bias": jnp.ones(4)}, "z": jnp.ones((2, 8))}
    by_path = zoo.scale_by_subset_norm(subset_size=lambda path, leaf: 4 if path.endswith("kernel") else None)
    prefix = zoo.scale_by_subset_norm(subset_size={"a": 4, "z": "heuristics"})
    assert jax.tree.map(jnp.shape, by_path.init(params).v) == {"a": {"kernel": (6,), "bias": (4,)}, "z": (2, 8)}
    assert jax.tree.map(jnp.shape, prefix.init(params).v) == {"a": {"kernel": (6,), "bias": (1,)}, "z": (1, 8)}
    updates, _ = prefix.update(params, prefix.init(params))
    np.testing.assert_allclose(updates["a"]["bias"], np.full(4, 0.5), rtol=1e-3)  # of norm 1, not each of size 1


def test_heuristics_normalise_the_rows_of_a_tall_matrix_and_the_columns_of_a_wide_one() -> None:
    g = jnp.asarray(np.random.default_rng(0).normal(size=LEAF), jnp.float32)
    tx = zoo.scale_by_subset_norm(b1=0.0, eps=0.0, subset_size="heuristics")
    for leaf, axis in ((g, 1), (g.T, 0)):
        u, _ = tx.update(leaf, tx.init(leaf))
        np.testing.assert_allclose(np.linalg.norm(u, axis=axis), np.ones(6), rtol=1e-3)


def test_without_momentum_every_subset_moves_by_the_learning_rate() -> None:
    """On the first step; Adam would move each entry by it, so that the authors take a rate about sqrt(k) larger."""
    g = jnp.asarray(np.random.default_rng(0).normal(size=LEAF), jnp.float32)
    tx = zoo.adamw_sn(0.1, b1=0.0, eps=0.0, subset_size=4)
    u, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(np.linalg.norm(u.reshape(6, 4), axis=1), np.full(6, 0.1), rtol=1e-3)
    assert optax.tree.get(state, "m") is None


def test_adagrad_sums_up_and_takes_no_bias_correction() -> None:
    params, gradients = problem()
    total, walked = np.zeros(6), params["w"]
    for g in gradients["w"]:
        total = total + np.sum(np.square(g.reshape(6, 2)), axis=1)
        walked = walked - 0.1 * (g.reshape(6, 2) / (np.sqrt(total) + 1e-6)[:, None]).reshape(4, 3)
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.sgd_sn(0.1, subset_size=2), params, gradients)
        as_adam = zoo.adamw_sn(0.1, b1=0.0, b2=1.0, subset_size=2)
        theirs, _ = trajectory(as_adam, params, gradients)
        scheduled, _ = trajectory(
            zoo.adamw_sn(0.1, b1=0.0, b2=lambda count: jnp.ones(()), subset_size=2), params, gradients
        )
    for path in (ours, theirs, scheduled):
        np.testing.assert_allclose(path["w"][-1], walked, rtol=1e-10)


def test_momentum_of_sgd_sn_is_an_average() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.sgd_sn(0.1, momentum=0.9, subset_size=10**6, eps=0.0), params, gradients)
    norms = np.sqrt(np.cumsum(np.sum(np.square(gradients["w"]), axis=(1, 2))))
    m, walked = np.zeros((4, 3)), params["w"]
    for g, norm in zip(gradients["w"], norms, strict=True):
        m = 0.9 * m + 0.1 * g
        walked = walked - 0.1 * m / norm
    np.testing.assert_allclose(ours["w"][-1], walked, rtol=1e-10)


@pytest.mark.parametrize("make", [zoo.adamw_sn, zoo.sgd_sn])
def test_decay_acts_on_the_new_weights(make: Any) -> None:
    params, gradients = problem(steps=1)
    with jax.enable_x64(True):
        plain, _ = trajectory(make(0.1), params, gradients)
        decayed, _ = trajectory(make(0.1, weight_decay=0.5, mask={"w": True, "b": False}), params, gradients)
    np.testing.assert_allclose(decayed["w"], 0.95 * plain["w"], rtol=1e-12)
    np.testing.assert_array_equal(decayed["b"], plain["b"])


def test_the_second_moment_of_n_parameters_takes_about_the_root_of_n() -> None:
    kernel = jax.eval_shape(lambda: {"w": jnp.zeros((4096, 1024))})
    state = jax.eval_shape(zoo.sgd_sn(1.0).init, kernel)
    assert sum(x.size for x in jax.tree.leaves(state)) <= 2 * 2048 + 3  # twice the root, and three scalars


def test_shared_step_sizes_train_as_well_as_adam_on_noise_of_subsets() -> None:
    """The paper's point: step sizes of subsets suffice where it is subsets whose gradients differ in size."""
    rng = np.random.default_rng(0)
    scale = np.repeat(10.0 ** rng.uniform(-2, 2, size=16), 16).reshape(16, 16)
    noise = jnp.asarray(rng.normal(size=(300, 16, 16)), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)}

    def best(subset_size: int | None) -> float:
        def loss(rate: jax.Array) -> jax.Array:
            tx = zoo.adamw_sn(rate, subset_size=subset_size)

            def step(carry: Any, draw: jax.Array) -> tuple[Any, None]:
                params, state = carry
                g = jnp.asarray(scale, jnp.float32) * (params["w"] + 0.1 * draw)
                updates, state = tx.update({"w": g}, state, params)
                return (optax.apply_updates(params, updates), state), None

            (last, _), _ = jax.lax.scan(step, (params, tx.init(params)), noise)
            return jnp.sum(jnp.square(last["w"]))

        return float(jax.jit(jax.vmap(loss))(jnp.asarray(0.01 * 2.0 ** np.arange(7), jnp.float32)).min())

    assert best(16) < 1.2 * best(None) < 0.2 * best(256)


@pytest.mark.parametrize("subset_size", [5, -1, "heuristics", None, 16])
@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "y"), PartitionSpec("y", "x")], ids=str)
def test_subsets_of_sharded_leaves_are_those_of_the_whole(spec: PartitionSpec, subset_size: Any) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    gs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8)), jnp.float32)
    tx = zoo.scale_by_subset_norm(subset_size=subset_size)
    state = cut = tx.init(gs[0])
    specs = jax.tree.map(lambda _: PartitionSpec(), state)._replace(m=spec)
    if subset_size is None:
        specs = specs._replace(v=spec)

    def inside(g: jax.Array, state: Any) -> Any:
        return tx.update(g, state, param_specs=spec)

    run = jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=(spec, specs), out_specs=(spec, specs)))
    for g in gs:
        expected, state = tx.update(g, state)
        updates, cut = run(g, cut)
        np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(cut.v, state.v, rtol=1e-4)


def test_subset_sizes_that_make_no_sense_are_refused() -> None:
    sentence = r"adamw_sn: subset_size must be a positive or a negative integer, 'heuristics' or None, got "
    for wrong in (0, False, "heuristic"):
        with pytest.raises(ValueError, match=f"{sentence}{wrong!r}"):
            zoo.adamw_sn(subset_size=wrong)
    with pytest.raises(ValueError, match="did you mean 'heuristics'"):
        zoo.sgd_sn(0.1, subset_size="heuristic")
    with pytest.raises(TypeError, match=rf"{sentence}2\.5"):
        zoo.adamw_sn(subset_size=2.5)
    params = {"w": jnp.ones(LEAF), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"adamw_sn: subset_size of the leaf at \['b'\] must be a .*, got 0"):
        zoo.adamw_sn(subset_size={"w": 4, "b": 0}).init(params)
    with pytest.raises(ValueError, match=r"adamw_sn: subset_size has no entry for the leaf at \['b'\]"):
        zoo.adamw_sn(subset_size={"w": 4}).init(params)
    with pytest.raises(ValueError, match=r"sgd_sn: momentum must be in \[0, 1\), got 1"):
        zoo.sgd_sn(0.1, momentum=1.0)


def test_an_injected_subset_size_is_read_when_the_state_is_made() -> None:
    params = {"w": jnp.ones(LEAF)}
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.inject_hyperparams(zoo.adamw_sn)(0.1, subset_size=4)
        state = tx.init(params)
        assert optax.tree.get(state, "v")["w"].shape == (6,)
        jax.jit(tx.update)(params, state, params)
        with pytest.raises(TypeError, match=r"adamw_sn: subset_size .* name it in the static_args of optax.inject_hyp"):
            jax.jit(tx.init)(params)
        jax.jit(optax.inject_hyperparams(zoo.adamw_sn)(0.1).init)(params)
