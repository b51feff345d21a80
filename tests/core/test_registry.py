"""create, find, cite and describe work from the records alone."""

import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_zoo as zoo

PARAMS = {"w": jnp.ones((8, 4)), "b": jnp.ones(4, jnp.bfloat16)}
TRAINING = [paper for paper in zoo.papers().values() if paper.trains]
OWN = [paper for paper in zoo.papers().values() if paper.library == "optax_zoo"]


def test_find_takes_shell_patterns() -> None:
    assert zoo.find("adem*") == ["ademamix"]
    assert set(zoo.find()) == set(zoo.papers())
    assert zoo.find("nothing*") == []


@pytest.mark.parametrize("paper", OWN, ids=lambda paper: paper.name)
def test_a_record_is_complete(paper: zoo.Paper) -> None:
    assert getattr(zoo, paper.name) is paper.make
    if paper.trains:
        assert zoo.create(paper.name, *(() if paper.kind == "transform" else required(paper)), **paper.example)
        assert paper.states
    else:
        with pytest.raises(TypeError, match=f"{paper.name}: a {paper.kind} is no update rule"):
            paper.build(1e-3)
    assert paper.link.startswith("https://")
    assert all("," in author for author in paper.authors)
    assert inspect.getdoc(paper.make) and inspect.getmodule(paper.make).__doc__
    assert paper.arxiv in inspect.getmodule(paper.make).__doc__


@pytest.mark.parametrize("paper", OWN, ids=lambda paper: paper.name)
def test_switches_are_true_or_false(paper: zoo.Paper) -> None:
    flags = [word for word, p in inspect.signature(paper.make).parameters.items() if p.annotation is bool]
    given = {
        word: None
        for word, p in inspect.signature(paper.make).parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    for flag in flags:
        with pytest.raises(TypeError, match=f"^{paper.make.__name__}: {flag} must be True or False, got 'False'"):
            paper.make(**{**given, flag: "False"})


def required(paper: zoo.Paper) -> tuple:
    return (1e-3,) if paper.kind == "optimizer" else (optax.sgd(1e-3),)


@pytest.mark.parametrize("paper", TRAINING, ids=lambda paper: paper.name)
def test_the_state_is_as_large_as_recorded(paper: zoo.Paper) -> None:
    params = {"w": jnp.ones((256, 256))}

    def count(tx: optax.GradientTransformation) -> int:
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, params)))

    extra = count(paper.build(1e-3)) - (0 if paper.kind == "optimizer" else count(paper.base(1e-3)))
    assert abs(extra / params["w"].size - paper.floats_per_parameter) < 0.05


def test_cite_by_name_and_from_a_live_state() -> None:
    entry = zoo.cite("ademamix")
    assert re.match(r"@article\{pagliardini2024", entry) and "2409.03137" in entry
    tx = optax.chain(zoo.clip_by_coordinate(), zoo.with_ema(zoo.ademamix(1e-3)))
    cited = zoo.cite(tx.init(PARAMS))
    assert all(zoo.cite(name) in cited for name in ("ademamix", "clip_by_coordinate", "with_ema"))
    assert zoo.cite(optax.sgd(1e-3).init(PARAMS)) == ""


def test_papers_shared_by_two_methods_are_cited_once() -> None:
    state = optax.chain(zoo.adabound(1e-3), zoo.amsbound(1e-3)).init(PARAMS)
    assert zoo.cite(state).count("@article") == 1


def test_describe_counts_bytes_by_slot() -> None:
    text = zoo.describe(zoo.with_ema(zoo.ademamix(1e-3, mu_dtype=jnp.bfloat16)), PARAMS)
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    assert lines["m1"][1:] == ["bfloat16", "36", "2"]
    assert lines["m2"][1:3] == ["bfloat16", "36"] and lines["nu"][1:3] == ["float32", "36"]
    assert lines["ema"][1:] == ["float32", "36", "4"]
    assert "AdEMAMix" in text and "with_ema needs params" in text


def test_describe_names_slots_where_parameters_have_fields() -> None:
    class Linear(NamedTuple):
        m: jax.Array
        bias: jax.Array

    text = zoo.describe(zoo.ademamix(1e-3), [Linear(*PARAMS.values())])
    assert text == zoo.describe(zoo.ademamix(1e-3), PARAMS)


def test_describe_needs_no_arrays() -> None:
    shapes = jax.eval_shape(lambda: PARAMS)
    assert zoo.describe(zoo.ademamix(1e-3), shapes) == zoo.describe(zoo.ademamix(1e-3), PARAMS)


def test_names_are_entered_once() -> None:
    from optax_zoo._core.paper import register

    with pytest.raises(ValueError, match="'ademamix' is registered already"):
        register(zoo.paper("ademamix"))
