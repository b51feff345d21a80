"""Subspace-Momentum: whole and empty subspaces, choices of it and resets, second moments, memory, sharded leaves."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

KINDS = ("svd", "topk", "uniform")
RESETS = ("reference", "clean", "keep")


def gradients(steps: int = 8, shape: tuple[int, int] = (6, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, *shape))


def entered(kind: str, projector: np.ndarray, g: np.ndarray) -> np.ndarray:
    """P g, as the paper writes it for tall and wide matrices, with its coordinates on the first axis."""
    tall = g.shape[0] >= g.shape[1]
    if kind == "svd":
        return (g @ projector.T).T if tall else projector @ g
    return g[projector] if tall else g[:, projector].T


def left(kind: str, projector: np.ndarray, y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    tall = shape[0] >= shape[1]
    if kind == "svd":
        return y.T @ projector if tall else projector.T @ y
    whole = np.zeros(shape)
    if tall:
        whole[projector] = y
    else:
        whole[:, projector] = y.T
    return whole


@pytest.mark.parametrize("shape", [(6, 4), (4, 7), (5, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", RESETS)
def test_directions_are_those_of_the_recursion(reset: Any, kind: Any, shape: tuple[int, int]) -> None:
    rank, gap, b1 = 2, 3, 0.8
    with jax.enable_x64(True):
        tx = zoo.scale_by_subspace_momentum(rank, b1, kind, gap, reset)
        state = tx.init(jnp.zeros(shape))
        e = np.zeros(state.exp_avg.shape)
        for t, g in enumerate(gradients(shape=shape), start=1):
            before = np.asarray(state.projector)
            u, state = tx.update(jnp.asarray(g), state)
            projector = np.asarray(state.projector)
            again = t > 1 and t % gap == 0
            assert (again or t == 1) or np.array_equal(projector, before)
            if again and reset == "clean":
                e = np.zeros_like(e)
            y = entered(kind, projector, g)
            e = b1 * e + (1 - b1) * y
            expected = left(kind, projector, e, shape) + (g - left(kind, projector, y, shape))
            np.testing.assert_allclose(u, expected, rtol=1e-10, atol=1e-12)
            if again and reset == "reference":
                e = np.zeros_like(e)
            np.testing.assert_allclose(state.exp_avg, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 7)], ids=str)
def test_subspaces_are_spanned_by_what_their_names_say(shape: tuple[int, int]) -> None:
    (g,) = gradients(1, shape)
    tall = shape[0] >= shape[1]
    with jax.enable_x64(True):

        def projector(kind: Any, seed: Any = 0) -> Any:
            tx = zoo.scale_by_subspace_momentum(2, proj_type=kind, seed=seed)
            return tx.update(jnp.asarray(g), tx.init(jnp.asarray(g)))[1].projector

        vectors = np.linalg.svd(g)[2][:2] if tall else np.linalg.svd(g)[0][:, :2].T
        svd = np.asarray(projector("svd"))
        np.testing.assert_allclose(svd.T @ svd, vectors.T @ vectors, atol=1e-12)
        np.testing.assert_allclose(svd @ svd.T, np.eye(2), atol=1e-12)
        norms = np.linalg.norm(g, axis=1 if tall else 0)
        assert set(projector("topk").tolist()) == set(np.argsort(norms)[-2:])
        drawn = jax.jit(jax.vmap(lambda seed: projector("uniform", seed)))(jnp.arange(20))
        pairs = [frozenset(pair) for pair in drawn.tolist()]
        assert all(len(pair) == 2 and max(pair) < max(shape) for pair in pairs) and len(set(pairs)) > 5


def test_another_choice_draws_other_rows() -> None:
    tx = zoo.scale_by_subspace_momentum(3, proj_type="uniform", update_proj_gap=1)
    gs = jnp.asarray(gradients(20, (12, 2)), jnp.float32)
    _, drawn = jax.lax.scan(lambda s, g: (s := tx.update(g, s)[1], jnp.sort(s.projector)), tx.init(gs[0]), gs)
    assert len(np.unique(drawn, axis=0)) > 10


@pytest.mark.parametrize("shape", [(6, 4), (4, 7)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_momentum_in_the_whole_space_is_an_average(kind: Any, shape: tuple[int, int]) -> None:
    rank = min(shape) if kind == "svd" else max(shape)
    with jax.enable_x64(True):
        ours, _ = trajectory(
            zoo.subspace_momentum(0.1, rank, kind, update_proj_gap=100), np.zeros(shape), gradients(shape=shape)
        )
        average = optax.chain(optax.ema(0.9, debias=False), optax.scale_by_learning_rate(0.1))
        theirs = optax_trajectory(average, np.zeros(shape), gradients(shape=shape))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", RESETS)
def test_without_momentum_the_direction_is_the_gradient(reset: Any, kind: Any) -> None:
    gs = jnp.asarray(gradients(), jnp.float32)
    tx = zoo.scale_by_subspace_momentum(2, 0.0, kind, 2, reset)
    _, us = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(gs[0]), gs)
    np.testing.assert_allclose(us, gs, atol=1e-5)


def test_leaves_that_are_no_matrices_have_ordinary_momentum() -> None:
    params, steps = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.subspace_momentum(0.1, 1), params, steps)
        average = optax.chain(optax.ema(0.9, debias=False), optax.scale_by_learning_rate(0.1))
        theirs = optax_trajectory(average, params, steps)
    np.testing.assert_allclose(ours["b"], theirs["b"], rtol=1e-10)
    assert not np.allclose(ours["w"], theirs["w"])


@pytest.mark.parametrize("subset_size", [None, 4, "heuristics", {"w": -1}])
def test_the_combination_is_subspace_momentum_over_subset_norms(subset_size: Any) -> None:
    """Built by hand: the direction of one, divided by what the other multiplies the gradient by."""
    gs = [{"w": jnp.asarray(g)} for g in np.float32(gradients())]
    momentum = zoo.scale_by_subspace_momentum(2, proj_type="topk", update_proj_gap=3)
    norms = zoo.scale_by_subset_norm(0.0, 0.99, subset_size=-2 if subset_size is None else subset_size)
    both = zoo.subspace_momentum(
        1.0, 2, "topk", 3, second_moment="sn", b2=0.99, subset_size=subset_size, bias_correction=True
    )
    states = [tx.init(gs[0]) for tx in (momentum, norms, both)]
    for t, g in enumerate(gs, start=1):
        u, states[0] = momentum.update(g, states[0])
        scaled, states[1] = norms.update(g, states[1])
        ours, states[2] = both.update(g, states[2])
        expected = u["w"] * (scaled["w"] / g["w"]) / (1 - 0.9**t)
        np.testing.assert_allclose(-ours["w"], expected, rtol=1e-4, atol=1e-6)


def test_adams_second_moment_is_that_of_single_entries() -> None:
    params, steps = problem()
    with jax.enable_x64(True):
        adam, _ = trajectory(zoo.subspace_momentum(0.01, 2, "topk", second_moment="adam"), params, steps)
        ones, _ = trajectory(zoo.subspace_momentum(0.01, 2, "topk", second_moment="sn", subset_size=1), params, steps)
        whole = zoo.subspace_momentum(0.01, 3, second_moment="adam", bias_correction=True)
        ours, _ = trajectory(whole, params, steps)
        theirs, _ = trajectory(zoo.adamw_sn(0.01, subset_size=None), params, steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), adam, ones)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), ours, theirs)


def test_bias_correction_without_a_second_moment_divides_by_that_of_the_momentum() -> None:
    gs = jnp.asarray(gradients(), jnp.float32)
    plain, corrected = (zoo.subspace_momentum(1.0, 2, bias_correction=flag) for flag in (False, True))
    states = plain.init(gs[0]), corrected.init(gs[0])
    for t, g in enumerate(gs, start=1):
        u, first = plain.update(g, states[0])
        v, second = corrected.update(g, states[1])
        states = first, second
        np.testing.assert_allclose(v, u / (1 - 0.9**t), rtol=1e-5)


def test_decay_acts_on_the_new_weights() -> None:
    params, steps = problem(steps=1)
    with jax.enable_x64(True):
        plain, _ = trajectory(zoo.subspace_momentum(0.1, 1), params, steps)
        decayed, _ = trajectory(zoo.subspace_momentum(0.1, 1, weight_decay=0.5), params, steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.95 * b, rtol=1e-12), decayed, plain)


def llama_1b() -> dict[str, jax.ShapeDtypeStruct]:
    """The matrices of LLaMA 1B's hidden layers."""
    width, inner, layers = 2048, 5461, 24
    shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
    shapes |= {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    return {
        f"{name}{i}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for (name, shape), i in itertools.product(shapes.items(), range(layers))
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_combination_needs_a_fifth_of_adams_state(kind: Any) -> None:
    """The paper's figure, for LLaMA 1B at rank 512."""
    params = llama_1b()

    def numbers(tx: optax.GradientTransformation) -> int:
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, params)))

    adam = numbers(optax.adam(1.0))
    share = numbers(zoo.subspace_momentum(1.0, 512, kind, second_moment="sn")) / adam
    assert share < (0.21 if kind == "svd" else 0.12)
    assert numbers(zoo.subspace_momentum(1.0, 512, kind, second_moment="adam")) / adam > 0.5


def test_momentum_where_the_signal_is_beats_none_and_costs_a_fraction() -> None:
    """The paper's point: along the few directions of large gradients momentum averages the noise away."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    shared = directions[:, :2] @ directions[:, :2].T
    params = jnp.zeros((32, 16))
    noise = jnp.asarray(0.05 * rng.normal(size=(400, 32, 16)) + 2 * rng.normal(size=(400, 32, 16)) @ shared)
    target = jnp.asarray(rng.normal(size=(32, 16)), jnp.float32)

    def error(tx: optax.GradientTransformation) -> float:
        def step(carry: Any, draw: jax.Array) -> Any:
            at, state = carry
            updates, state = tx.update(at - target + draw, state, at)
            at = optax.apply_updates(at, updates)
            return (at, state), jnp.sum(jnp.square(at - target))

        _, errors = jax.lax.scan(step, (params, tx.init(params)), noise.astype(jnp.float32))
        return float(errors[-100:].mean())

    inside = error(zoo.subspace_momentum(0.3, 2, update_proj_gap=50, b1=0.9, reset="clean"))
    assert inside < 0.95 * error(optax.sgd(0.3))


@pytest.mark.parametrize("moment", ["none", "sn", "adam"])
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_matrices_are_seen_whole(kind: Any, moment: Any) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    steps = gradients(4, (4, 8)).astype(np.float32)
    gs = [{"w": jnp.asarray(g), "b": jnp.asarray(g[0])} for g in steps]
    specs = {"w": PartitionSpec("x", "y"), "b": PartitionSpec("y")}
    tx = zoo.subspace_momentum(0.1, 2, kind, 2, second_moment=moment)
    state = cut = tx.init(gs[0])
    everywhere = jax.tree.map(lambda _: PartitionSpec(), state)
    if moment == "adam":
        everywhere = optax.tree_map_params(tx, lambda _, spec: spec, everywhere, specs)

    def inside(g: Any, state: Any) -> Any:
        return tx.update(g, state, g, param_specs=specs)

    run = jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=(specs, everywhere), out_specs=(specs, everywhere)))
    for g in gs:
        expected, state = tx.update(g, state, g)
        updates, cut = run(g, cut)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), updates, expected)


def test_derivatives_of_an_update_take_the_subspace_as_given() -> None:
    (g,) = jnp.asarray(gradients(1), jnp.float32)
    tx = zoo.scale_by_subspace_momentum(2)
    weights = jnp.arange(24.0).reshape(6, 4)
    slope = jax.jit(jax.grad(lambda g: jnp.sum(weights * tx.update(g, tx.init(g))[0])))(g)
    basis = tx.update(g, tx.init(g))[1].projector
    np.testing.assert_allclose(slope, weights - 0.9 * weights @ basis.T @ basis, rtol=1e-4, atol=1e-4)


def test_members_of_a_batch_choose_only_when_one_of_them_must() -> None:
    gs = jnp.asarray(gradients(3), jnp.float32)
    tx = zoo.scale_by_subspace_momentum(2)
    _, early = tx.update(gs[0], tx.init(gs[0]))
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), tx.init(gs[0]), early)
    together, after = jax.jit(jax.vmap(tx.update))(gs[:2], states)
    for i, state in enumerate((tx.init(gs[0]), early)):
        alone, expected = tx.update(gs[i], state)
        np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after.projector[i], expected.projector, rtol=1e-5, atol=1e-6)
    choices = str(jax.make_jaxpr(jax.vmap(tx.update))(gs[:2], states))
    assert choices.index("while[") < choices.index("svd[")


def test_what_makes_no_sense_is_refused() -> None:
    params = {"hidden": jnp.ones((6, 4)), "readout": jnp.ones((4, 1))}
    sentence = r"subspace_momentum: rank must be at most 1 for the leaf at \['readout'\] of shape \(4, 1\), got 2"
    with pytest.raises(ValueError, match=sentence):
        zoo.subspace_momentum(0.1, 2).init(params)
    zoo.subspace_momentum(0.1, 4, "topk").init(params)
    with pytest.raises(ValueError, match=r"at most 4 for the leaf at \['readout'\]"):
        zoo.subspace_momentum(0.1, 5, "uniform").init(params)
    with pytest.raises(ValueError, match=r"subspace_momentum: rank must be in \[1, inf\), got -1"):
        zoo.scale_by_subspace_momentum(-1)
    with pytest.raises(TypeError, match=r"subspace_momentum: rank must be an integer, got 1\.5"):
        zoo.subspace_momentum(0.1, 1.5).init(params)
    with pytest.raises(ValueError, match=r"update_proj_gap must be in \[1, inf\), got 0"):
        zoo.subspace_momentum(0.1, 1, update_proj_gap=0)
    for word, value in (("proj_type", "srht"), ("reset", "clear"), ("second_moment", "SN")):
        with pytest.raises(ValueError, match=f"subspace_momentum: {word} must be one of .*, got '{value}'"):
            zoo.subspace_momentum(0.1, 1, **{word: value})
    with pytest.raises(ValueError, match="subspace_momentum: subset_size needs second_moment='sn', got 'adam'"):
        zoo.subspace_momentum(0.1, 1, second_moment="adam", subset_size=4)
    with pytest.raises(ValueError, match=r"subset_size must be a positive or a negative integer, .* got 0"):
        zoo.subspace_momentum(0.1, 1, second_moment="sn", subset_size=0)


def test_an_injected_rank_is_read_when_the_state_is_made() -> None:
    g = jnp.ones((6, 4))
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.inject_hyperparams(zoo.subspace_momentum)(0.1, 2)
        state = tx.init(g)
        jax.jit(tx.update)(g, state, g)
        with pytest.raises(TypeError, match=r"subspace_momentum: rank .* name it in the static_args"):
            jax.jit(tx.init)(g)
