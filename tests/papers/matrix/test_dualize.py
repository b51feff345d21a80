"""Dualisation: the table of norms, steepest descent, its readings, roles and budgets."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_zoo as zoo
from optax_zoo import MatrixView
from optax_zoo._core.quintics import PRESETS

P = PartitionSpec
GOLDEN = Path(__file__).parents[2] / "golden" / "dualize.atoms.npz"
SHAPES: dict[str, tuple[int, ...]] = {
    "linear": (6, 4),
    "embed": (7, 5),
    "conv": (3, 2, 4, 6),
    "vector": (5,),
    "sign": (4, 3),
}


def gaussian(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    parts = np.random.default_rng(seed).normal(size=(2, *shape))
    return jnp.asarray(parts[0] + 1j * parts[1] if jnp.issubdtype(dtype, jnp.complexfloating) else parts[0], dtype)


def leaves(seed: int = 0) -> dict[str, jax.Array]:
    return {role: gaussian(*shape, seed=seed) for role, shape in SHAPES.items()}


ROLES = {role: role for role in SHAPES}


def dualized(gradient: Any, roles: Any, **arguments: Any) -> Any:
    tx = zoo.dualize(roles, **arguments)
    return jax.jit(lambda g: tx.update(g, tx.init(g))[0])(gradient)


def assert_equal(ours: Any, expected: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, atol=atol), ours, expected)


def newton_schulz(x: np.ndarray, eps: float) -> np.ndarray:
    x = x / (np.linalg.norm(x) + eps)
    for a, b, c in PRESETS["you6"]:
        r = x @ x.T
        x = a * x + (b * r + c * r @ r) @ x
    return x


def in_numpy(g: np.ndarray, role: str, eps: float) -> np.ndarray:
    """The table of the papers, literally."""
    if role == "linear":
        return np.sqrt(g.shape[1] / g.shape[0]) * newton_schulz(g, eps)
    if role == "conv":
        kh, kw = g.shape[:2]
        at = [[in_numpy(g[i, j], "linear", eps) / (kh * kw) for j in range(kw)] for i in range(kh)]
        return np.array(at)
    if role == "embed":
        return np.array([row * np.sqrt(row.size) / (np.linalg.norm(row) + eps) for row in g])
    return np.sign(g) if role == "sign" else g * np.sqrt(g.size) / (np.linalg.norm(g) + eps)


def test_equals_the_recorded_results() -> None:
    with np.load(GOLDEN, allow_pickle=False) as file, jax.enable_x64(True):
        rtol = json.loads(str(file["meta"]))["rtol"]
        given = {key: jnp.asarray(file[key]) for key in file if key != "meta"}

        def check(outs: dict[str, str], roles: Any, target_norm: Any, **arguments: Any) -> None:
            gradient = {name: given[f"in/{name}"] for name in outs}
            ours = dualized(gradient, roles, target_norm=target_norm, **arguments)
            for name, out in outs.items():
                np.testing.assert_allclose(ours[name], given[f"out/{out}"], rtol=rtol, atol=1e-9)

        module = zoo.modular_atom("comp1") @ zoo.modular_bond(2.0) @ zoo.modular_atom("comp0")
        composed = module.target_norms({"comp0": given["in/comp0"], "comp1": given["in/comp1"]})
        targets = {"linear0": 1.0, "linear1": 0.3, "linear2": 2.0}
        plain = {name: name for name in (*targets, "embed", *composed)}
        roles = {**dict.fromkeys(plain, "linear"), "embed": "embed"}
        check(plain, roles, {**targets, "embed": 0.5, **composed})
        exact = {name: name.replace("linear", "linear_svd") for name in targets} | {"conv": "conv_svd"}
        check(exact, {**roles, "conv": "conv"}, {**targets, "conv": 1.0}, method="svd")


def test_equals_the_numpy_transcription() -> None:
    with jax.enable_x64(True):
        g = jax.tree.map(lambda x: x.astype(jnp.float64), leaves())
        transform = jax.jit(lambda g, eps: dualized(g, ROLES, eps=eps))
        for eps in (0.0, 0.3):
            expected = {role: in_numpy(np.asarray(x), role, eps) for role, x in g.items()}
            assert_equal(transform(g, eps), expected, atol=1e-12)


VIEWS: dict[str, tuple[tuple[int, ...], MatrixView]] = {
    "torch's linear": ((6, 4), MatrixView(1, 0)),
    "experts": ((3, 4, 6), MatrixView(1, 2, 0)),
    "fused heads": ((4, 2, 3), MatrixView(0, (1, 2), split=(2, 4))),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_the_direction_has_norm_1_and_no_other_has_a_larger_product(dtype: Any) -> None:
    roles = {**ROLES, **{name: view for name, (_, view) in VIEWS.items()}}
    shapes = {**SHAPES, **{name: shape for name, (shape, _) in VIEWS.items()}}
    g = {name: gaussian(*shape, dtype=dtype) for name, shape in shapes.items()}
    others = {name: gaussian(20, *shape, seed=1, dtype=dtype) for name, shape in shapes.items()}

    def product(x: Any, y: Any) -> Any:
        return jnp.sum(jnp.real(jnp.conj(x) * y))

    @jax.jit
    def measured(g: Any, others: Any) -> dict[str, Any]:
        t = dualized(g, roles, method="svd")

        def of(name: str) -> Any:
            mixed = jax.vmap(lambda other: 0.7 * t[name] + 0.3 * other)(others[name])
            each = jax.vmap(lambda d: (product(g[name], d), zoo.atom_norm(d, roles[name])))(mixed)
            norm, dual = zoo.atom_norm(t[name], roles[name]), zoo.atom_dual_norm(g[name], roles[name])
            return norm, dual, product(g[name], t[name]), *each

        return {name: of(name) for name in roles}

    with jax.numpy_dtype_promotion("standard"):
        for name, (norm, dual, reached, products, norms) in measured(g, others).items():
            np.testing.assert_allclose(norm, 1.0, rtol=1e-5, err_msg=name)
            np.testing.assert_allclose(reached, dual, rtol=1e-5, err_msg=name)
            assert (products <= dual * norms * (1 + 1e-5)).all(), name


def test_of_several_matrices_norms_are_the_largest_and_dual_norms_the_sum() -> None:
    fused = gaussian(4, 6) * jnp.array([[1.0, 1.0, 3.0, 3.0, 3.0, 3.0]])
    view, parts = MatrixView(split=(2, 4)), (fused[:, :2], fused[:, 2:])
    norms, duals = ([float(of(part, "linear")) for part in parts] for of in (zoo.atom_norm, zoo.atom_dual_norm))
    assert norms[0] < norms[1]
    np.testing.assert_allclose(zoo.atom_norm(fused, view), norms[1], rtol=1e-6)
    np.testing.assert_allclose(zoo.atom_dual_norm(fused, view), sum(duals), rtol=1e-6)


def test_the_norms_are_those_of_the_operators() -> None:
    """RMS of outputs over RMS of inputs; for an embedding over one-hot inputs."""

    def rms(x: np.ndarray) -> Any:
        return np.sqrt(np.mean(x**2, axis=-1))

    w = np.asarray(leaves()["linear"], np.float64)
    x = np.random.default_rng(0).normal(size=(2000, 6))
    u, _, _ = np.linalg.svd(w)
    norm = float(zoo.atom_norm(jnp.asarray(w, jnp.float32), "linear"))
    np.testing.assert_allclose(rms(u[:, 0] @ w) / rms(u[:, 0]), norm, rtol=1e-5)
    assert np.max(rms(x @ w) / rms(x)) <= norm
    table = leaves()["embed"]
    np.testing.assert_allclose(np.max(rms(np.asarray(table))), zoo.atom_norm(table, "embed"), rtol=1e-6)


def test_does_not_depend_on_the_scale_of_the_gradient() -> None:
    tx = zoo.dualize(ROLES)
    direction = jax.jit(lambda g: tx.update(g, tx.init(g))[0])
    for scale in (1e-35, 1e25):
        assert_equal(direction(jax.tree.map(lambda g, scale=scale: scale * g, leaves())), direction(leaves()))


@pytest.mark.parametrize(("method", "adaptive"), [("plain", True), ("plain", False), ("gram", False), ("svd", True)])
def test_zero_gradients_stay_zero(method: Any, adaptive: bool) -> None:
    zero = jax.tree.map(jnp.zeros_like, leaves())
    jax.tree.map(np.testing.assert_array_equal, dualized(zero, ROLES, method=method, adaptive=adaptive), zero)


def test_rows_of_absent_tokens_stay_zero() -> None:
    g = gaussian(7, 5).at[3].set(0.0)
    t = dualized(g, "embed")
    np.testing.assert_array_equal(t[3], jnp.zeros(5))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(t[:3] ** 2, axis=1)), np.ones(3), rtol=1e-6)


BUDGETS = {"linear": 0.5, "embed": 2.0, "conv": 1.0, "vector": 0.1, "sign": 0.3}


def test_adaptive_is_steepest_descent_under_the_largest_norm_over_budgets() -> None:
    """argmin of <G, D> + |D|^2 / 2 is -|G|_dual T, with |D| = max |D_l| / s_l."""
    g = leaves()
    t = dualized(g, ROLES, target_norm=BUDGETS, method="svd")
    d = dualized(g, ROLES, target_norm=BUDGETS, method="svd", adaptive=True)
    dual = sum(BUDGETS[role] * float(zoo.atom_dual_norm(x, role)) for role, x in g.items())
    assert_equal(d, jax.tree.map(lambda x: dual * x, t), atol=1e-3)

    def model(step: Any) -> float:
        norm = max(float(zoo.atom_norm(x, role)) / BUDGETS[role] for role, x in step.items())
        return float(optax.tree.vdot(g, step)) + norm**2 / 2

    best = model(jax.tree.map(jnp.negative, d))
    np.testing.assert_allclose(best, -(dual**2) / 2, rtol=1e-5)
    for seed in range(1, 10):
        other = jax.tree.map(lambda x, e: -(x + 0.1 * dual * e), d, leaves(seed))
        assert model(other) > best


def test_adaptive_steps_decrease_a_quadratic_by_as_much_as_the_dual_norm_promises() -> None:
    """For f of sharpness L under the norm, a rate of 1 / L gives f(x + D) <= f(x) - |G|_dual^2 / (2 L)."""
    target = leaves(1)
    sharpness = optax.tree.norm(dualized(target, ROLES, method="svd"), squared=True)

    def losses(adaptive: bool, rate: Any) -> Any:
        tx = optax.chain(zoo.dualize(ROLES, adaptive=adaptive, method="svd"), optax.sgd(rate))

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            gap = jax.tree.map(jnp.subtract, params, target)
            updates, state = tx.update(gap, state, params)
            dual = sum(zoo.atom_dual_norm(x, role) for role, x in gap.items())
            return (optax.apply_updates(params, updates), state), (optax.tree.norm(gap, squared=True) / 2, dual)

        return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=200)[1])(leaves())

    loss, dual = losses(True, 1 / sharpness)
    assert (np.diff(loss) <= -(dual[:-1] ** 2) / (2 * sharpness) + 1e-5 * loss[:-1]).all()
    assert loss[-1] < 0.05 * loss[0]
    assert np.diff(losses(False, 0.1)[0])[-100:].max() > 0  # circles


def test_sign_is_adam_without_averages() -> None:
    g = gaussian(4, 3)
    adam = optax.scale_by_adam(b1=0.0, b2=0.0, eps=0.0)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(dualized(g, "sign"), adam.update(g, adam.init(g))[0], rtol=1e-6)


def test_linear_is_shampoo_without_accumulation() -> None:
    g = np.random.default_rng(0).normal(size=(4, 4))

    def power(x: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(x)
        return vectors * values**-0.25 @ vectors.T

    shampoo = power(g @ g.T) @ g @ power(g.T @ g)
    with jax.enable_x64(True):
        np.testing.assert_allclose(dualized(jnp.asarray(g), "linear", method="svd"), shampoo, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_linear_is_muon_up_to_its_factor(shape: tuple[int, int]) -> None:
    g = gaussian(*shape)
    ours = dualized(g, "linear", ns_coeffs="keller", ns_steps=4, eps=1e-7)
    for scaling in ("spectral", "width"):
        muon = zoo.scale_by_muon(0.0, nesterov=False, scaling=scaling, ns_steps=4, method="plain")
        theirs = muon.update(g, muon.init(g))[0]
        factor = max(1.0, (shape[0] / shape[1]) ** 0.5) if scaling == "width" else 1.0
        np.testing.assert_allclose(factor * ours, theirs, atol=1e-5)


def test_methods_and_coefficients_are_those_of_orthogonalize() -> None:
    g = gaussian(3, 12)
    exact = dualized(g, "linear", method="svd")
    expected = 2.0 * zoo.orthogonalize(g, ns_coeffs="you6", eps=0.0)
    for method in ("gram", "auto"):
        ours = dualized(g, "linear", method=method)
        np.testing.assert_allclose(ours, expected, atol=1e-4)
        assert 1e-5 < np.max(np.abs(ours - exact)) < 1e-2
    row = (1.5, -0.5, 0.0)
    many = dualized(g, "linear", ns_coeffs=row, ns_steps=30)
    np.testing.assert_allclose(many, exact, atol=1e-4)
    assert np.max(np.abs(dualized(g, "linear", ns_coeffs=row, ns_steps=2) - exact)) > 0.1


def growing(count: jax.Array) -> jax.Array:
    return 2.0 + count.astype(jnp.float32)


def test_the_target_norm_may_be_a_number_an_array_a_schedule_or_a_tree_of_them() -> None:
    g = {"rows": gaussian(3, 2), "matrix": gaussian(2, 2)}
    roles = {"rows": "embed", "matrix": "linear"}
    one = dualized(g, roles, method="svd")
    twice = jax.tree.map(lambda t: 2 * t, one)
    for target in (jnp.float32(2.0), growing, {"rows": np.float32(2.0), "matrix": growing}):
        assert_equal(dualized(g, roles, target_norm=target, method="svd"), twice)
    nested = {"a": g, "b": g}
    prefix = dualized(nested, {"a": roles, "b": "sign"}, target_norm={"a": 2.0, "b": 0.0}, method="svd")
    assert_equal(prefix, {"a": twice, "b": jax.tree.map(jnp.zeros_like, g)})
    counted = zoo.dualize("sign", target_norm=growing)
    _, state = counted.update(g, counted.init(g))
    assert_equal(counted.update(g, state)[0], jax.tree.map(lambda x: 3 * jnp.sign(x), g))


def test_leaves_that_are_absent_stay_so() -> None:
    g = {"w": gaussian(3, 4), "none": None, "masked": optax.MaskedNode()}
    ours = dualized(g, {"w": "linear", "none": "sign", "masked": "embed"}, adaptive=True)
    assert jax.tree.structure(ours) == jax.tree.structure(g)


@pytest.mark.parametrize("scale", [1e-35, 1e38])
@pytest.mark.parametrize("role", ["linear", "embed", "vector", "sign"])
def test_no_gradient_is_too_small_or_too_large(role: str, scale: float) -> None:
    g = gaussian(3, 4) / 4
    np.testing.assert_allclose(dualized(scale * g, role), dualized(g, role), atol=1e-5)


@pytest.mark.parametrize("role", ["embed", "vector"])
def test_the_derivative_at_rows_of_zeros_is_finite(role: str) -> None:
    tx = zoo.dualize(role)
    g = gaussian(3, 4).at[1].set(0.0) if role == "embed" else jnp.zeros((3, 4))
    assert jnp.isfinite(jax.grad(lambda g: tx.update(g, tx.init(g))[0].sum())(g)).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("role", ["linear", "embed", "vector", "sign"])
def test_norms_of_half_precision_are_those_of_float32(role: Any, dtype: Any) -> None:
    x = (300 * jnp.ones((2, 300))).astype(dtype)
    for of in (zoo.atom_norm, zoo.atom_dual_norm):
        ours = of(x, role)
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, of(x.astype(jnp.float32), role), rtol=1e-6)
    assert zoo.atom_norm([[3.0, 0.0]], "linear") == pytest.approx(3.0 / np.sqrt(2))


SPECS = {
    "linear": P("a", "b"),
    "embed": P("b", "a"),
    "conv": P(None, "a", "b"),
    "vector": P("b"),
    "sign": P("b"),
    "grid": P("a", "b"),
    "rows": P(("a", "b")),
}


def sharded(tx: Any, params: Any, specs: Any, check_vma: bool = True, given: Any = ()) -> Any:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def step(p: Any) -> Any:
        return tx.update(p, tx.init(p), p, **dict(given))[0]

    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=check_vma))(params)


@pytest.mark.parametrize(("check_vma", "adaptive"), [(True, True), (False, False)])
def test_sharded_leaves_equal_the_single_device(check_vma: bool, adaptive: bool) -> None:
    shapes = {"linear": (8, 12), "embed": (8, 6), "conv": (3, 2, 4, 6), "vector": (8,), "sign": (4, 3)}
    params = {name: gaussian(*shape) for name, shape in shapes.items()}
    params |= {"grid": gaussian(4, 8), "rows": gaussian(16, 3)}
    tx = zoo.dualize({**ROLES, "grid": "vector", "rows": "embed"}, adaptive=adaptive, method="svd")
    ours = sharded(tx, params, SPECS, check_vma, {"param_specs": SPECS})
    single = jax.jit(lambda p: tx.update(p, tx.init(p))[0])(params)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-4, atol=1e-4), ours, single)


def test_signs_and_vectors_need_no_spec() -> None:
    params = {"sign": gaussian(4, 8), "vector": gaussian(8)}
    tx = zoo.dualize({"sign": "sign", "vector": "vector"}, adaptive=True)
    ours = sharded(tx, params, {"sign": P("a", "b"), "vector": P("b")})
    assert_equal(ours, tx.update(params, tx.init(params))[0], atol=1e-4)


@pytest.mark.parametrize("role", ["linear", "embed", "vector"])
def test_a_sharded_leaf_without_its_spec_is_named(role: str) -> None:
    with pytest.raises(ValueError, match=r"dualize: the leaf at \['w'\] .* mesh axis 'b'.*param_specs"):
        sharded(zoo.dualize(role), {"w": gaussian(8, 4)}, {"w": P("b")})


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dualize: target_norm must be in \[0, inf\), got -1.0"):
        zoo.dualize("sign", target_norm=-1.0)
    with pytest.raises(ValueError, match=r"dualize: target_norm of the leaf at \['w'\] must be in \[0, inf\)"):
        zoo.dualize("sign", target_norm={"w": -1.0})
    with pytest.raises(ValueError, match="dualize: no ns_coeffs 'you'"):
        zoo.dualize("sign", ns_coeffs="you")
    with pytest.raises(ValueError, match="dualize: method must be one of"):
        zoo.dualize("sign", method="qr")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"dualize: the gradient at \['w'\] is int32"):
        tx = zoo.dualize("linear")
        tx.update({"w": jnp.ones((2, 2), jnp.int32)}, tx.init({"w": jnp.ones((2, 2))}))
    with pytest.raises(ValueError, match=r"atom_norm: update of shape .* has the role 'linear'"):
        zoo.atom_norm(gaussian(3), "linear")
