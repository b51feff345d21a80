"""Replays the recorded trajectories of the authors' own code, of every registered method."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import trajectory

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = [(paper.name, case) for paper in zoo.papers().values() for case in paper.golden]


def prefixed(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def optimizer(name: str, meta: dict[str, Any]) -> optax.GradientTransformation:
    call, extra = dict(meta["call"]), meta["extra"]
    if "learning_rate_per_step" in extra:
        table = jnp.asarray(extra["learning_rate_per_step"])
        call["learning_rate"] = lambda count: table[count]
    if "decay_schedule" in extra:
        helper = extra["decay_schedule"]
        call["decay"] = getattr(zoo, helper["name"])(**helper["kwargs"])
    if "inner" in extra:
        inner = dict(extra["inner"])
        make = getattr(optax, inner.pop("name").removeprefix("optax."))
        call["inner"] = make(**inner.get("kwargs", inner))
    if "mask" in extra:
        call["mask"] = extra["mask"]
    if "manifolds" in extra:
        call["manifolds"] = {leaf: manifold(**recipe) for leaf, recipe in extra["manifolds"].items()}
    return zoo.create(name, **call)


def manifold(name: str, **arguments: Any) -> zoo.Manifold:
    return getattr(zoo, name.title().replace("_", ""))(**arguments)


def extra_arguments(arrays: dict[str, np.ndarray], extra: dict[str, Any]) -> dict[str, Any]:
    """What `update` is given beside the gradient, stacked over steps."""
    given: dict[str, Any] = {}
    if "check_every" in extra:
        given["value"] = np.concatenate([[np.nan] * (extra["check_every"] - 1) + [value] for value in extra["values"]])
    elif "values" in extra:
        given["value"] = np.asarray(extra["values"])
    if "prediction" in extra:
        given["prediction"] = prefixed(arrays, "m/")
    if "previous_grads" in extra:
        given["previous_grads"] = prefixed(arrays, extra["previous_grads"])
    return given


def starting_with(tx: optax.GradientTransformation, **fields: Any) -> optax.GradientTransformationExtraArgs:
    """`tx` whose state starts with other values in these fields."""
    tx = optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(lambda params: optax.tree.set(tx.init(params), **fields), tx.update)


def assert_same_displacement(ours: np.ndarray, theirs: np.ndarray, start: np.ndarray, rtol: float) -> None:
    moved = theirs - start
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * 1e-3)
    np.testing.assert_allclose(ours - start, moved, rtol=rtol, atol=0.1 * rtol * np.abs(moved).max())


@pytest.mark.parametrize(("name", "case"), CASES, ids=[case for _, case in CASES])
def test_equals_the_authors_code(name: str, case: str) -> None:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    start, gradients, recorded = (prefixed(arrays, prefix) for prefix in ("p0/", "g/", "p/"))
    averaged = prefixed(arrays, meta["extra"].get("avg_key") or meta["extra"].get("eval_key") or "avg/")

    wraps_optax = "inner" in meta["extra"]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard" if wraps_optax else "strict"):
        tx = optimizer(name, meta)
        if "init_velocity" in meta["extra"]:
            tx = starting_with(tx, velocity=prefixed(arrays, "v0/"))
        ours, evaluated = trajectory(tx, start, gradients, **extra_arguments(arrays, meta["extra"]))

    assert recorded.keys() == start.keys()
    for leaf, theirs in recorded.items():
        assert_same_displacement(ours[leaf], theirs, start[leaf], meta["rtol"])
    for leaf, theirs in averaged.items():
        assert_same_displacement(evaluated[leaf], theirs, start[leaf], meta["rtol"])


FUNCTION_LEVEL = {
    "adaptive_batch.basic",
    "dualize.atoms",
    "fisher_merge.basic",
    "model_soup.basic",
    "model_stock.basic",
    "orthogonalize.basic",
    "ot_fusion.basic",
    "schedules.basic",
    "swad.basic",
    "uncertainty_merge.basic",
    "variance_corrected_average.basic",
    "weight_conditioning.basic",
}
"""Replayed beside the functions they record, in tests/papers."""


def test_every_golden_file_is_replayed() -> None:
    claimed = {case for _, case in CASES} | FUNCTION_LEVEL
    assert claimed == {path.stem for path in GOLDEN.glob("*.npz")}
