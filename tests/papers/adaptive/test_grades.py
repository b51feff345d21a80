"""GradES: what is frozen, when, with what beside it, and what freezing leaves undone."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from optax_zoo.adaptive.grades import grades, grades_frozen, grades_frozen_fraction
from tests.laws.harness import default_promotion, matrix_mesh, row_specs

STEPS = 12


def problem() -> tuple[Any, Any]:
    """Gradients of "still" fade quickly, those of "moving" and "b" do not."""
    rng = np.random.default_rng(0)
    params = {"still": rng.normal(size=(8, 3)), "moving": rng.normal(size=(8, 2)), "b": rng.normal(size=3)}
    grads = {name: rng.normal(size=(STEPS, *p.shape)) for name, p in params.items()}
    grads["still"] *= (0.3 ** np.arange(STEPS))[:, None, None]
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, grads))


def plainly(update: Callable[..., Any], params: Any, state: Any) -> Callable[..., Any]:
    return jax.jit(update)


def run(tx: optax.GradientTransformation, wrap: Callable[..., Any] = plainly) -> list[tuple[Any, Any]]:
    """Parameters and state after each step; the first entry is the start."""
    params, gradients = problem()
    walked = [(params, tx.init(params))]
    update = wrap(tx.update, *walked[0])
    for i in range(STEPS):
        params, state = walked[-1]
        updates, state = update(jax.tree.map(lambda g, i=i: g[i], gradients), state, params)
        walked.append((optax.apply_updates(params, updates), state))
    return walked


def same(ours: Any, theirs: Any, rtol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=0.1 * rtol), ours, theirs)


def freezing(inner: optax.GradientTransformation, **arguments: Any) -> optax.GradientTransformationExtraArgs:
    """Freezes "still" alone under SGD."""
    return grades(inner, **{"tau": 2e-3, "total_steps": 10, **arguments})


def frozen(state: Any) -> set[str]:
    return {name for name, flag in grades_frozen(state).items() if flag}


def test_the_converged_leaf_is_frozen_and_the_others_go_on() -> None:
    walked = run(freezing(optax.sgd(0.01)))
    plain = run(optax.sgd(0.01))
    first = next(t for t, (_, state) in enumerate(walked) if frozen(state))
    assert 3 < first < STEPS and frozen(walked[-1][1]) == {"still"}
    for t in range(STEPS + 1):
        same({n: walked[t][0][n] for n in ("moving", "b")}, {n: plain[t][0][n] for n in ("moving", "b")})
    for params, _ in walked[first:]:
        np.testing.assert_array_equal(params["still"], walked[first][0]["still"])
    assert float(grades_frozen_fraction(walked[-1][1])) == pytest.approx(1 / 3)
    assert float(grades_frozen_fraction(walked[0][1])) == 0


def test_the_claim_half_of_a_model_is_frozen_early_at_no_loss() -> None:
    """A regression whose second half is learned a hundred times faster: it is frozen, the loss does not suffer."""
    curvature = {"slow": 0.02, "fast": 2.0}

    def loss(params: Any) -> Any:
        return sum(0.5 * c * jnp.sum((params[name] - 1) ** 2) for name, c in curvature.items())

    def trained(tx: optax.GradientTransformation) -> tuple[float, Any]:
        step = zoo.train_step(loss, tx)
        params = {name: jnp.zeros(4) for name in curvature}

        def body(carry: Any, _: Any) -> Any:
            params, state, _ = step(*carry)
            return (params, state), None

        return jax.lax.scan(body, (params, tx.init(params)), length=400)[0]

    plain, _ = trained(optax.sgd(0.2))
    params, state = trained(grades(optax.sgd(0.2), tau=1e-4, total_steps=400, alpha=0.05))
    assert frozen(state) == {"fast"}
    assert float(loss(params)) == pytest.approx(float(loss(plain)), rel=1e-4)


def test_nothing_happens_before_its_share_of_the_run_or_at_tau_zero() -> None:
    inner = optax.chain(optax.trace(0.9), optax.scale(-0.01))
    plain = run(inner)[-1][0]
    for arguments in ({"tau": 0.0}, {"tau": 1e9, "total_steps": 100, "alpha": 0.2}):
        params, state = run(freezing(inner, **arguments))[-1]
        assert not frozen(state)
        same(params, plain)


def test_checks_come_at_multiples_of_the_interval() -> None:
    walked = run(freezing(optax.sgd(0.01), tau=1e9, total_steps=20, compute_interval=5))
    assert [len(frozen(state)) for _, state in walked] == [0] * 10 + [3] * 3
    same(walked[8][1].previous, walked[5][0])
    change = sum(np.abs(walked[10][0][name] - walked[5][0][name]).sum() for name in ("moving",))
    assert float(walked[12][1].change["moving"]) == pytest.approx(float(change), rel=1e-5)


@pytest.mark.parametrize("monitor", ["gradient", "gradient_change"])
def test_what_is_watched_may_be_the_gradient(monitor: str) -> None:
    _, gradients = problem()
    with default_promotion():
        walked = run(freezing(optax.adam(1e-9), tau=0.1, monitor=monitor))
    watched = np.asarray(gradients["still"])
    if monitor == "gradient_change":
        watched = np.diff(watched, axis=0, prepend=watched[:1])
    sizes = np.abs(watched).sum(axis=(1, 2))
    first = next(t for t in range(3, STEPS + 1) if sizes[t - 1] < 0.1)
    assert [bool(grades_frozen(state)["still"]) for _, state in walked] == [t >= first for t in range(STEPS + 1)]
    assert float(walked[3][1].change["still"]) == pytest.approx(sizes[2], rel=1e-5)
    assert (walked[0][1].previous is None) == (monitor == "gradient")


def test_a_component_of_several_leaves_is_frozen_as_one() -> None:
    groups = {"still": "layer", "moving": "other", "b": "layer"}
    slow, fast = (run(freezing(optax.sgd(0.01), tau=tau, groups=groups))[-1][1] for tau in (2e-3, 0.1))
    assert frozen(slow) == set() and frozen(fast) == {"still", "b"}
    assert float(fast.components) == 2 and float(grades_frozen_fraction(fast)) == 0.5
    assert float(fast.change["still"]) == float(fast.change["b"])


def test_leaves_of_few_dimensions_are_left_alone() -> None:
    _, state = run(freezing(optax.sgd(0.01), tau=1e9, min_ndim=2))[-1]
    assert frozen(state) == {"still", "moving"} and float(grades_frozen_fraction(state)) == 1
    mixed = {"still": 0, "moving": 1, "b": 0}
    _, state = run(freezing(optax.sgd(0.01), tau=1e9, min_ndim=2, groups=mixed))[-1]
    assert frozen(state) == {"still", "moving"} and float(grades_frozen_fraction(state)) == 1


def test_a_frozen_leaf_counts_in_no_norm_and_keeps_its_state() -> None:
    inner = optax.chain(
        optax.clip_by_global_norm(0.1), optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-0.01)
    )
    with default_promotion():
        walked = run(grades(inner, tau=1e9, total_steps=10, groups={"still": 0, "moving": 1, "b": 1}, min_ndim=2))
        tx = grades(
            inner, tau=1e9, total_steps=10, monitor="gradient", groups=lambda tree: dict.fromkeys(tree, 0), min_ndim=2
        )
        state = run(tx)[3][1]
        assert frozen(state) == {"still", "moving"}
        params, gradients = problem()
        params["b"] = params["b"] * 0
        g = {**jax.tree.map(lambda g: 100 * g[0], gradients), "b": jnp.full(3, 0.01)}
        updates, after = tx.update(g, state, params)
    np.testing.assert_allclose(
        after.inner_state[1].mu["b"], 0.9 * state.inner_state[1].mu["b"] + 0.1 * g["b"], rtol=1e-5
    )
    for slot in ("mu", "nu"):
        before, now = (getattr(s.inner_state[1], slot) for s in (state, after))
        np.testing.assert_array_equal(before["still"], now["still"])
    assert not updates["still"].any() and not updates["moving"].any()
    assert int(after.inner_state[1].count) == 4
    assert frozen(walked[-1][1]) == {"still", "moving"}


INNERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "schedule": lambda: optax.sgd(optax.linear_schedule(0.02, 0.01, 5), 0.9),
    "factored": lambda: optax.adafactor(0.01, min_dim_size_to_factor=2),
    "statistics": lambda: zoo.muon(0.01),
    "average": lambda: zoo.with_ema(zoo.adabelief(0.01)),
    "partition": lambda: optax.partition(
        {"a": optax.adam(0.01), "z": optax.sgd(0.01, 0.9)}, {"still": "a", "moving": "z", "b": "a"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(zoo.adabound)(0.01, gamma=0.1),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
}


@pytest.mark.parametrize("inner", INNERS)
def test_skipping_and_selecting_are_the_same(inner: str) -> None:
    """A component of two units, one of which is never frozen, and components of one leaf."""
    groups = {"still": 0, "moving": 1, "b": 0} if inner in ("average", "factored") else None
    with default_promotion():
        selected, skipped = (
            run(freezing(INNERS[inner](), tau=0.15, min_ndim=2, groups=groups, skip_frozen=skip))
            for skip in (False, True)
        )
    counts = [len(frozen(state)) for _, state in selected]
    assert counts[0] == 0 and 0 < counts[-1] < 3
    for (ours, state), (theirs, other) in zip(skipped, selected, strict=True):
        assert jax.tree.structure(state) == jax.tree.structure(other)
        same((ours, state), (theirs, other), 2e-5)


def test_with_skip_frozen_the_work_is_inside_a_conditional() -> None:
    """The root of Adam's rule is computed nowhere else."""
    params = {"w": jnp.ones((64, 64)), "v": jnp.ones((32, 32))}

    def computations(skip: bool) -> dict[str, str]:
        tx = freezing(optax.scale_by_adam(), skip_frozen=skip)
        with default_promotion():
            text = jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text()
        return dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+)[^\n]*\{\n(.*?)^\}", text, flags=re.M | re.S))

    def reached_without_branching(parts: dict[str, str], text: str) -> str:
        lines = [line for line in text.splitlines() if "conditional(" not in line]
        called = re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", "\n".join(lines))
        return "\n".join(lines + [reached_without_branching(parts, parts[name]) for name in called if name in parts])

    for skip in (False, True):
        parts = computations(skip)
        entry = next(text for name, text in parts.items() if name.startswith("main"))
        everywhere = "\n".join(parts.values())
        assert "sqrt" in everywhere
        assert ("sqrt" in reached_without_branching(parts, entry)) == (not skip)


@pytest.mark.parametrize("skip", [False, True])
def test_blocks_of_a_sharded_leaf_are_judged_together(skip: bool) -> None:
    def over_devices(update: Callable[..., Any], params: Any, state: Any) -> Callable[..., Any]:
        specs, over_state = row_specs(params), row_specs(state)
        return jax.jit(
            jax.shard_map(
                update, mesh=matrix_mesh(), in_specs=(specs, over_state, specs), out_specs=(specs, over_state)
            )
        )

    tx = freezing(zoo.ademamix(0.01), tau=0.1, skip_frozen=skip)
    alone, together = run(tx), run(tx, wrap=over_devices)
    assert any(0 < len(frozen(state)) < 3 for _, state in alone)
    for (ours, state), (theirs, other) in zip(together, alone, strict=True):
        same(ours, theirs, 1e-5)
        assert frozen(state) == frozen(other)


def test_runs_under_vmap_freeze_each_in_its_own_time() -> None:
    params, gradients = problem()
    scales = jnp.array([1.0, 1e-3])

    @functools.partial(jax.jit, static_argnums=1)
    def walk(scale: Any, skip: bool) -> Any:
        tx = freezing(zoo.adabelief(0.01 * scale), tau=2e-3, skip_frozen=skip)

        def body(carry: Any, g: Any) -> Any:
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), grades_frozen_fraction(state)

        return jax.lax.scan(body, (params, tx.init(params)), gradients)[1]

    for skip in (False, True):
        together = jax.vmap(lambda s, skip=skip: walk(s, skip))(scales)
        assert together[0, -1] < together[1, -1] == 1
        np.testing.assert_allclose(together, [walk(s, skip) for s in scales])


def test_flags_are_found_through_nesting() -> None:
    labels = {"still": "vision", "moving": "vision", "b": "language"}
    with default_promotion():
        tx = optax.partition(
            {name: freezing(optax.sgd(0.01), tau=tau) for name, tau in (("vision", 2e-3), ("language", 1e9))}, labels
        )
        _, state = run(zoo.with_ema(optax.apply_if_finite(tx, 3)))[-1]
    assert frozen(state) == {"still", "b"}
    assert float(grades_frozen_fraction(state)) == pytest.approx(2 / 3)
    with default_promotion():
        _, state = run(optax.masked(freezing(optax.sgd(0.01), tau=1e9), {"still": True, "moving": False, "b": False}))[
            -1
        ]
    assert frozen(state) == {"still"} and float(grades_frozen_fraction(state)) == 1


def test_a_nan_gradient_neither_freezes_nor_poisons() -> None:
    params, gradients = problem()
    tx = freezing(optax.sgd(0.01), monitor="gradient", tau=1e9)
    state = tx.init(params)
    for i in range(4):
        g = jax.tree.map(lambda g, i=i: g[i], gradients)
        g["still"] = g["still"] * (jnp.nan if i < 3 else 1)
        updates, state = tx.update(g, state, params)
        assert frozen(state) == (set() if i < 2 else {"moving", "b"} | ({"still"} if i == 3 else set()))
    updates, state = tx.update({**g, "still": g["still"] * jnp.nan}, state, params)
    assert not updates["still"].any()


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"grades: int\(total_steps \* alpha\) must be larger .* got int\(10 \* 0.3\) and 3"
    ):
        grades(optax.sgd(0.1), 1e-3, 10, compute_interval=3)
    with pytest.raises(ValueError, match=r"grades: tau must be in \[0, inf\), got -1"):
        grades(optax.sgd(0.1), -1, 100)
    with pytest.raises(
        ValueError, match=r"grades: monitor must be one of .* got 'weights'; did you mean 'weight_change'"
    ):
        grades(optax.sgd(0.1), 1e-3, 100, monitor="weights")
    with pytest.raises(ValueError, match=r"grades: min_ndim must be in \[0, inf\), got -1"):
        grades(optax.sgd(0.1), 1e-3, 100, min_ndim=-1)
    with pytest.raises(TypeError, match=r"grades: inner must be an optax.GradientTransformation"):
        grades(0.1, 1e-3, 100)
    params = {"w": jnp.ones((2, 2)), "v": jnp.ones(3)}
    flat = optax.flatten(optax.trace(0.9))
    selected, skipped = (grades(flat, 1e-3, 100, skip_frozen=skip) for skip in (False, True))
    selected.update(params, selected.init(params), params)
    with pytest.raises(ValueError, match=r"grades: the state of inner at .*trace.* cannot be divided by parameters"):
        skipped.update(params, skipped.init(params), params)
    with pytest.raises(ValueError, match=r"grades: groups must be a tree \(or a prefix\)"):
        tx = grades(optax.sgd(0.1), 1e-3, 100, groups={"w": 0})
        tx.update(params, tx.init(params), params)
    for helper in (grades_frozen, grades_frozen_fraction):
        with pytest.raises(ValueError, match=rf"{helper.__name__}: the optimizer state has no grades"):
            helper(optax.sgd(0.1).init(params))
