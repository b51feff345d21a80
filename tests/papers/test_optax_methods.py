"""Optax's methods in the registry: the records say what the functions really do."""

import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo

OPTAX = {name: entry for name, entry in zoo.papers().items() if entry.library == "optax"}
ELEMENTWISE = {name: entry for name, entry in OPTAX.items() if entry.elementwise}
RECOGNISED = {name: entry for name, entry in OPTAX.items() if entry.states}

PARAMS = {"w": jnp.linspace(-0.9, 1.1, 12).reshape(3, 4), "b": jnp.linspace(0.2, 0.5, 4)}
GRADS = jax.tree.map(lambda p: jnp.cos(7.0 * p), PARAMS)
EXTRA = {"value": jnp.float32(3.0), "grad": GRADS}


@pytest.fixture(autouse=True)
def standard_promotion() -> Iterator[None]:
    """Optax mixes Python ints, int32 counts and floats, as the default promotion of dtypes allows."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def step_without(entry: zoo.Paper, missing: str | None) -> None:
    tx = entry.build(1e-3)
    params = None if missing == "params" else PARAMS
    tx.update(GRADS, tx.init(PARAMS), params, **{key: v for key, v in EXTRA.items() if key != missing})


def test_the_common_methods_are_there() -> None:
    expected = {"adam", "adamw", "adagrad", "lamb", "lion", "nadam", "prodigy", "rmsprop", "sgd"}
    assert expected <= OPTAX.keys()
    assert sum(entry.races_by_default for entry in OPTAX.values()) == 4


@pytest.mark.parametrize("entry", OPTAX.values(), ids=OPTAX)
def test_make_is_the_function_of_optax(entry: zoo.Paper) -> None:
    homes = [home for home in (optax, optax.contrib) if hasattr(home, entry.name)]
    assert entry.make is getattr(homes[0], entry.name)
    assert entry.transform is None or entry.transform.__module__.startswith("optax.")


@pytest.mark.parametrize("entry", OPTAX.values(), ids=OPTAX)
def test_create_builds_it(entry: zoo.Paper) -> None:
    arguments = {"optimizer": [1e-3], "wrapper": [optax.sgd(1e-3)], "transform": []}[entry.kind]
    tx = zoo.create(entry.name, *arguments, **entry.example)
    assert isinstance(tx, optax.GradientTransformation)


@pytest.mark.parametrize("entry", OPTAX.values(), ids=OPTAX)
def test_source_is_well_formed(entry: zoo.Paper) -> None:
    assert all(re.fullmatch(r"[^,]+, [^,]+", author) for author in entry.authors)
    assert bool(entry.arxiv) != bool(entry.url)
    if entry.arxiv:
        year, _ = re.fullmatch(r"(\d\d)\d\d\.(\d{4,5})", entry.arxiv).groups()
        assert entry.year == 2000 + int(year)


@pytest.mark.parametrize("entry", OPTAX.values(), ids=OPTAX)
def test_size_of_the_state(entry: zoo.Paper) -> None:
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    inner = optax.identity() if entry.kind == "optimizer" else optax.adamw(1e-3)
    sizes = [jax.tree.leaves(jax.eval_shape(tx.init, params)) for tx in (entry.build(1e-3), inner)]
    own, given = (sum(math.prod(leaf.shape) for leaf in leaves) / 1024**2 for leaves in sizes)
    np.testing.assert_allclose(own - given, entry.floats_per_parameter, atol=0.01)


@pytest.mark.parametrize("entry", OPTAX.values(), ids=OPTAX)
def test_needs_are_what_it_cannot_do_without(entry: zoo.Paper) -> None:
    step_without(entry, None)
    if entry.kind == "optimizer":
        for key in ("params", *EXTRA):
            if key not in entry.needs:
                step_without(entry, key)
    for key in entry.needs:
        with pytest.raises((ValueError, TypeError, AttributeError)):
            step_without(entry, key)


@pytest.mark.parametrize("entry", RECOGNISED.values(), ids=RECOGNISED)
def test_cite_recognises_its_state(entry: zoo.Paper) -> None:
    assert entry.bibtex in zoo.cite(entry.build(1e-3).init(PARAMS))


@pytest.mark.parametrize("entry", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_elementwise_methods_keep_entries_apart(entry: zoo.Paper) -> None:
    tx = entry.build(1e-2)

    def path(first: jax.Array) -> np.ndarray:
        params, state, steps = PARAMS, tx.init(PARAMS), []
        for grads in ({**GRADS, "w": first}, GRADS, GRADS):
            updates, state = tx.update(grads, state, params, **EXTRA)
            params = optax.apply_updates(params, updates)
            steps.append(np.append(params["w"], params["b"]))
        return np.stack(steps)

    changed = path(GRADS["w"]) != path(GRADS["w"].at[0, 0].multiply(-1.5))
    np.testing.assert_array_equal(changed.any(0), np.arange(16) == 0)
