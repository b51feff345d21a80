"""What all merging functions do alike: lists or stacks, leaf by leaf, dtypes, errors."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import optax_zoo as zoo
from optax_zoo.merging import fisher_merge as fisher_module
from optax_zoo.merging._leaves import Matched, several

COUNT = 3
SHAPES = {"kernel": (4, 3), "bias": (3,)}


def tree(seed: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "block": {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()},
        "scale": jnp.asarray(rng.normal(), dtype),
        "frozen": None,
        "steps": jnp.asarray(seed, jnp.int32),
    }


def squares(seed: int) -> dict[str, Any]:
    return jax.tree.map(lambda x: jnp.square(x.astype(jnp.float32)) + 0.1, tree(seed))


def trees(dtype: Any = jnp.float32) -> list[Any]:
    return [tree(seed, dtype) for seed in range(1, COUNT + 1)]


def stacked(several: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *several)


class Beside(NamedTuple):
    """What some methods are given beside the models."""

    base: Any
    fishers: list[Any]
    fisher_base: Any


Merge: TypeAlias = Callable[[Any, Beside], Any]

BESIDE = Beside(tree(9), [squares(seed) for seed in range(11, 11 + COUNT)], squares(19))
COEFFICIENTS = [0.5, 0.3, 0.2]

METHODS: dict[str, Merge] = {
    "uniform_soup": lambda models, beside: zoo.uniform_soup(models, [1.0, 2.0, 0.5]),
    "diwa": lambda models, beside: zoo.diwa(models)[0],
    "task_arithmetic": lambda models, beside: zoo.task_arithmetic(beside.base, models, 0.4),
    "fisher_merge": lambda models, beside: zoo.fisher_merge(models, beside.fishers, COEFFICIENTS),
    "uncertainty_merge": lambda models, beside: zoo.uncertainty_merge(
        beside.base, models, beside.fisher_base, beside.fishers, alpha=0.5, hessian_scales=[2.0, 1.0, 3.0]
    ),
    "model_stock": lambda models, beside: zoo.model_stock(beside.base, models),
    "model_stock by filter": lambda models, beside: zoo.model_stock(beside.base, models, granularity="filter"),
    "variance_corrected_average": lambda models, beside: zoo.variance_corrected_average(
        models, target="mix", self_params=beside.base, conservative=0.3
    ),
}
each_method = pytest.mark.parametrize("merge", METHODS.values(), ids=METHODS.keys())


def assert_same(ours: Any, theirs: Any, rtol: float = 0.0) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), ours, theirs)


@each_method
def test_a_stack_is_a_list(merge: Merge) -> None:
    assert_same(merge(stacked(trees()), BESIDE), merge(trees(), BESIDE))
    assert_same(merge(tuple(trees()), BESIDE), merge(trees(), BESIDE))


@each_method
@pytest.mark.parametrize("form", [stacked, list])
def test_under_jit(merge: Merge, form: Callable[[list[Any]], Any]) -> None:
    assert_same(jax.jit(merge)(form(trees()), BESIDE), merge(trees(), BESIDE), rtol=1e-5)


@each_method
def test_dtypes_come_back_and_integers_are_the_first_models(merge: Merge) -> None:
    models = trees()
    merged = merge(models, BESIDE)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(lambda x: (x.shape, x.dtype), models[0])
    assert merged["steps"] == models[0]["steps"] and merged["frozen"] is None


@each_method
def test_narrow_weights_are_merged_in_float32(merge: Merge) -> None:
    def only_kernel(tree: Any, dtype: Any) -> Any:
        return {"kernel": tree["block"]["kernel"].astype(dtype)}

    narrow, wide = (
        merge(
            [only_kernel(model, dtype) for model in trees(jnp.bfloat16)],
            Beside(
                only_kernel(tree(9, jnp.bfloat16), dtype),
                [only_kernel(fisher, jnp.float32) for fisher in BESIDE.fishers],
                only_kernel(BESIDE.fisher_base, jnp.float32),
            ),
        )["kernel"]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_numpy_numbers_keys_and_eight_bit_floats() -> None:
    first, second = (
        {"w": np.full(3, x), "lr": x, "key": jax.random.key(int(x)), "f8": jnp.full(2, x, jnp.float8_e4m3fn)}
        for x in (1.0, 3.0)
    )
    merged = zoo.uniform_soup([first, second])
    np.testing.assert_array_equal(merged["w"], np.full(3, 2.0))
    assert merged["lr"] == 2.0 and merged["key"] == first["key"]
    assert merged["f8"].dtype == jnp.float8_e4m3fn and np.all(np.asarray(merged["f8"], np.float32) == 2.0)


def paths(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "fisher_merge"])
def test_leaf_by_leaf_is_the_whole_tree_to_the_bit(name: str) -> None:
    for path, whole in paths(METHODS[name](trees(), BESIDE)).items():

        def at(tree: Any, path: str = path) -> Any:
            return {path: paths(tree)[path]}

        beside = Beside(at(BESIDE.base), [at(fisher) for fisher in BESIDE.fishers], at(BESIDE.fisher_base))
        alone = METHODS[name]([at(model) for model in trees()], beside)
        assert np.array_equal(alone[path], whole), path


def test_fisher_merge_leaf_by_leaf_after_a_pass_over_the_fishers() -> None:
    models, fishers = [paths(x) for x in trees()], [paths(x) for x in BESIDE.fishers]
    floating = [path for path, x in models[0].items() if x.dtype == jnp.float32]
    passed = [fisher_module.statistics([fisher[path] for fisher in fishers]) for path in floating]
    shares = fisher_module.normalized(COEFFICIENTS, passed)
    whole = paths(zoo.fisher_merge(trees(), BESIDE.fishers, COEFFICIENTS))
    for path in whole:
        alone = zoo.fisher_merge(
            [{path: model[path]} for model in models],
            [{path: fisher[path]} for fisher in fishers],
            shares,
            normalize_fishers=False,
        )
        assert np.array_equal(alone[path], whole[path]), path


def test_the_statistics_do_not_underflow() -> None:
    tiny = jnp.asarray([3e-30, 4e-30])
    np.testing.assert_allclose(fisher_module.statistics([tiny, tiny * 2]), [5e-30, 1e-29], rtol=1e-6)
    (share,) = fisher_module.normalized([2.0], [fisher_module.statistics([tiny])] * 4)
    np.testing.assert_allclose(share, 2e29, rtol=1e-6)


@pytest.mark.parametrize("name", ["fisher_merge", "model_stock", "variance_corrected_average"])
def test_blocks_inside_shard_map_are_the_whole_leaf(name: str) -> None:
    rng = np.random.default_rng(0)
    models, fishers = ([{"w": rng.normal(size=(16, 3)).astype(np.float32)} for _ in range(COUNT)] for _ in range(2))
    fishers, base = jax.tree.map(np.square, fishers), {"w": np.zeros((16, 3), np.float32)}
    merge, arguments = {
        "fisher_merge": (zoo.fisher_merge, (models, fishers)),
        "model_stock": (zoo.model_stock, (base, models)),
        "variance_corrected_average": (zoo.variance_corrected_average, (models,)),
    }[name]
    mesh, rows = Mesh(np.asarray(jax.devices()[:8]), ("rows",)), PartitionSpec("rows")
    sharded = jax.jit(jax.shard_map(merge, mesh=mesh, in_specs=rows, out_specs=rows))
    assert_same(sharded(*arguments), merge(*arguments), rtol=1e-5)


def test_complex_weights() -> None:
    rng = np.random.default_rng(0)
    models = [{"w": (rng.normal(size=4) + 1j * rng.normal(size=4)).astype(np.complex64)} for _ in range(2)]
    base, fisher = {"w": np.ones(4, np.complex64)}, {"w": np.ones(4, np.float32)}
    middle = (models[0]["w"] + models[1]["w"]) / 2
    for merged in (
        zoo.uniform_soup(models, jnp.asarray([3.0, 3.0])),
        zoo.fisher_merge(models, [fisher, fisher]),
        zoo.task_arithmetic(base, models, 0.5),
        zoo.uncertainty_merge(base, models, fisher, [fisher, fisher], alpha=0.5),
        zoo.interpolate(*models, 0.5),
    ):
        np.testing.assert_allclose(merged["w"], middle, rtol=1e-5)
    identical = [models[0], models[0]]
    np.testing.assert_allclose(zoo.model_stock(base, identical)["w"], models[0]["w"], rtol=1e-5)
    np.testing.assert_allclose(zoo.variance_corrected_average(identical)["w"], models[0]["w"], rtol=1e-5)


def with_nan(model: Any) -> Any:
    return {**model, "block": {**model["block"], "bias": model["block"]["bias"].at[1].set(jnp.nan)}}


@each_method
@pytest.mark.parametrize("form", [stacked, list])
def test_the_model_with_nan_is_named(merge: Merge, form: Callable[[list[Any]], Any]) -> None:
    first, second, third = trees()
    with pytest.raises(ValueError, match=re.escape("model 1 has NaN at ['block']['bias']")):
        merge(form([first, with_nan(second), third]), BESIDE)


def test_nan_beside_the_models_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("task_arithmetic: base has NaN at ['block']['bias']")):
        zoo.task_arithmetic(with_nan(BESIDE.base), trees())
    with pytest.raises(ValueError, match=re.escape("fisher_merge: fisher 2 has NaN at ['block']['bias']")):
        zoo.fisher_merge(trees(), [*BESIDE.fishers[:2], with_nan(BESIDE.fishers[2])])
    with pytest.raises(ValueError, match=re.escape("interpolate: b has NaN at ['block']['bias']")):
        zoo.interpolate(BESIDE.base, with_nan(BESIDE.base), 0.5)


W, OTHER = jnp.ones((2, 3)), jnp.ones((3, 2))
MISTAKES = [
    ([], "uniform_soup: needs at least one model"),
    (
        [{"a": W, "b": W}, {"a": W, "c": W}],
        "uniform_soup: model 0 and model 1 must have the same tree structure; model 0 has a leaf at ['b'], model 1 has"
        " none there",
    ),
    ([{"a": W}, {"a": W}, {"a": {"k": W}}], "uniform_soup: at ['a'] model 0 has a leaf and model 2 has a dict"),
    ([{"a": W}, {"a": None}], "uniform_soup: at ['a'] model 0 has an array and model 1 has None"),
    ([{"a": None}, {"a": W}], "uniform_soup: at ['a'] model 0 has None and model 1 has an array"),
    (
        [{"a": W, "b": W}, {"a": W, "b": OTHER}],
        "uniform_soup: at ['b'] model 0 has shape (2, 3) and model 1 has shape (3, 2)",
    ),
    (
        [{"a": W}, {"a": W.astype(jnp.bfloat16)}],
        "uniform_soup: at ['a'] model 0 has dtype float32 and model 1 has dtype bfloat16",
    ),
    ({"a": W, "b": OTHER}, "uniform_soup: the stacked models disagree on their number: 2 at ['a'] and 3 at ['b']"),
    (
        {"a": W, "b": jnp.ones(())},
        "uniform_soup: the stacked models need a first axis that counts them; ['b'] is 0-d",
    ),
]


@pytest.mark.parametrize(("models", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_the_first_leaf_that_differs_is_named(models: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence) + "$"):
        zoo.uniform_soup(models)


def test_what_is_no_array_is_named() -> None:
    with pytest.raises(TypeError, match=r"^uniform_soup: model 0 has a function at \['f'\], no array; put None"):
        zoo.uniform_soup([{"f": tree}, {"f": tree}])
    with pytest.raises(TypeError, match=r"^uniform_soup: the stacked model has a str at \['f'\], no array"):
        zoo.uniform_soup({"f": "relu"})


def test_a_base_that_differs_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^model_stock: at \['a'\] model 0 has shape \(2,\) and base has shape \(3,\)$"
    ):
        zoo.model_stock({"a": jnp.ones(3)}, [{"a": jnp.ones(2)}] * 2)
    with pytest.raises(ValueError, match=r"at \['a'\] model 0 has shape \(3,\) and fisher 1 has shape \(2,\)$"):
        zoo.fisher_merge({"a": jnp.ones((2, 3))}, [{"a": jnp.ones(3)}, {"a": jnp.ones(2)}])


def test_mismatches_are_found_without_the_weights() -> None:
    shapes = [jax.eval_shape(lambda: tree(0)) for _ in range(2)]
    Matched(several("model", shapes))
    shapes[1]["scale"] = jax.ShapeDtypeStruct((), jnp.bfloat16)
    with pytest.raises(ValueError, match="dtype float32 and model 1 has dtype bfloat16"):
        Matched(several("model", shapes))


def test_a_tree_without_leaves() -> None:
    assert zoo.uniform_soup([{}, {}]) == {}
    assert zoo.fisher_merge([{"a": None}] * 2, [{"a": None}] * 2) == {"a": None}
