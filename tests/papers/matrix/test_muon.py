from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from optax_zoo._core.views import MatrixView
from optax_zoo.matrix._auxiliary import muon_mask_by_path
from optax_zoo.matrix.muon import muon, scale_by_muon

P = PartitionSpec


def gaussian(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def direction(gradient: Any, **arguments: Any) -> Any:
    tx = scale_by_muon(**arguments)
    return tx.update(gradient, tx.init(gradient))[0]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum_form", ["ema", "sum"])
@pytest.mark.parametrize(
    ("scaling", "factor"), [("width", 2**0.5), ("spectral", 2**0.5), ("rms", 0.2 * 8**0.5), (None, 1.0)]
)
def test_is_the_scaled_polar_factor_of_the_momentum(
    nesterov: bool, momentum_form: Any, scaling: Any, factor: float
) -> None:
    b, m = 0.9, np.zeros((4, 8))
    tx = scale_by_muon(b, nesterov=nesterov, momentum_form=momentum_form, scaling=scaling, method="svd")
    state = tx.init(gaussian(4, 8))
    for t in range(3):
        g = gaussian(4, 8, seed=t)
        taken = (1 - b) * np.asarray(g) if momentum_form == "ema" else np.asarray(g)
        m = b * m + taken
        u, _, vt = np.linalg.svd(taken + b * m if nesterov else m, full_matrices=False)
        ours, state = tx.update(g, state)
        np.testing.assert_allclose(ours, factor * u @ vt, atol=1e-5)


def test_singular_values_lie_where_keller_jordan_says() -> None:
    s = np.linalg.svd(np.asarray(direction(gaussian(16, 64), scaling=None)), compute_uv=False)
    assert s.min() > 0.6818 and s.max() < 1.1344  # the iteration's own range from [0.01, 1]


def test_does_not_depend_on_the_scale_of_the_gradient() -> None:
    g = gaussian(4, 8)
    np.testing.assert_allclose(direction(10.0 * g), direction(g), atol=1e-5)


def test_without_nesterov_it_is_optax_muon() -> None:
    g = gaussian(6, 6)
    theirs = optax.contrib.scale_by_muon(nesterov=False)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, _ = theirs.update(g, theirs.init(g))
    np.testing.assert_allclose(direction(g, nesterov=False, scaling=None), expected, atol=1e-5)


def test_float16_zero_gradients_stay_finite() -> None:
    params = {"w": jnp.zeros((4, 4), jnp.float16), "b": jnp.zeros(4, jnp.float16)}
    tx = muon(0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    for leaf, update in updates.items():
        np.testing.assert_array_equal(update, params[leaf])


def labels(tx: optax.GradientTransformation, params: Any) -> dict[str, bool]:
    momentum = tx.init(params).inner_states["matrix"].inner_state[0].momentum
    return {name: not isinstance(leaf, optax.MaskedNode) for name, leaf in momentum.items()}


@pytest.mark.parametrize(
    ("arguments", "matrices"),
    [
        ({}, {"embed", "w"}),
        ({"muon_mask": muon_mask_by_path()}, {"w", "conv"}),
        ({"muon_mask": "hidden"}, {"w", "conv"}),
        ({"muon_mask": lambda path, leaf: path == "conv"}, {"conv"}),
        ({"muon_mask": lambda params: {name: name == "w" for name in params}}, {"w"}),
        ({"muon_mask": {"embed": False, "w": True, "conv": True, "b": False}}, {"w", "conv"}),
        ({"dimension_numbers": lambda path, leaf: MatrixView(2, 3, (0, 1)) if path == "conv" else None},
         {"embed", "w", "conv"}),
    ],
)  # fmt: skip
def test_who_goes_to_adam(arguments: Any, matrices: set[str]) -> None:
    params = {"embed": gaussian(9, 4), "w": gaussian(4, 4), "conv": gaussian(3, 3, 2, 4), "b": gaussian(4)}
    assert {name for name, yes in labels(muon(0.1, **arguments), params).items() if yes} == matrices


@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_matrices_equal_the_single_device(check_vma: bool) -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    params = {"w": gaussian(8, 12), "experts": gaussian(4, 6, 8), "rows": gaussian(8, 3), "bias": gaussian(8)}
    specs = {"w": P("a", "b"), "experts": P("b", None, "a"), "rows": P(("a", "b")), "bias": P("b")}
    views = {"w": None, "experts": MatrixView(1, 2, 0), "rows": None, "bias": None}
    tx = muon(0.1, weight_decay=0.1, dimension_numbers=views)

    def step(p: Any) -> Any:
        return tx.update(p, tx.init(p), p, param_specs=specs)[0]

    sharded = jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=check_vma)
    ours, single = jax.jit(sharded)(params), step(params)
    for name in params:
        np.testing.assert_allclose(ours[name], single[name], atol=1e-5)


def test_a_sharded_matrix_without_its_spec_is_named() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    step = jax.shard_map(direction, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    with pytest.raises(ValueError, match=r"muon: the leaf at \['w'\] .* mesh axis 'data'.*param_specs"):
        step({"w": gaussian(8, 4)})


@pytest.mark.parametrize(
    ("leaf", "view", "sentence"),
    [
        (gaussian(3), None, r"muon: the leaf at \['w'\] of shape \(3,\) is not a matrix"),
        (gaussian(3, 4), MatrixView(0, 5), r"muon: the leaf at \['w'\] of shape \(3, 4\) has axes -2 to 1"),
        (gaussian(3, 4), MatrixView(0, 0), r"muon: the leaf at \['w'\] .* names every axis once"),
        (gaussian(3, 4, 2), MatrixView(0, 1), r"muon: the leaf at \['w'\] .* names every axis once"),
        (gaussian(3, 4), {"v": None}, r"muon: dimension_numbers has no entry for the leaf at \['w'\]"),
    ],
)
def test_leaves_that_are_no_matrices_are_named(leaf: Any, view: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        scale_by_muon(dimension_numbers=view).init({"w": leaf})


@pytest.mark.parametrize(
    "arguments", [{"momentum": 1.0}, {"scaling": "x"}, {"momentum_form": "x"}, {"adam_b1": 1.0}, {"eps": -1.0}]
)
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^muon: {next(iter(arguments))} must be"):
        muon(0.1, **arguments)


def test_a_mask_of_another_word_is_refused() -> None:
    with pytest.raises(TypeError, match="muon: muon_mask must be 'hidden' or hold True or False, got 'hiden'"):
        muon(0.1, muon_mask="hiden").init({"w": gaussian(3, 2)})
