"""The benchmarks run at a toy size and write what they report; what a clock says is never asserted."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_zoo as zoo
from benchmarks import compile_time, contests, harness, hlo, memory, merge_memory, results, sharing, step_time

SCRIPTS: dict[str, ModuleType] = {"step_time": step_time, "memory": memory, "compile_time": compile_time}
EVERY_SCRIPT = {**SCRIPTS, "sharing": sharing}


@pytest.fixture(autouse=True)
def default_promotion() -> Iterator[None]:
    """The benchmarks run optax's methods, which need JAX's defaults."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[dict, str]]:
    def run(script: str, *arguments: str) -> tuple[dict, str]:
        path = tmp_path / "results" / f"{script}.json"
        EVERY_SCRIPT[script].main([*arguments, "--out", str(path)])
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_writes_figures_and_reports_them(script: str, run: Callable[..., tuple[dict, str]]) -> None:
    content, text = run(script, "--quick", "--methods", "ademamix")
    assert content["script"] == script
    assert content["machine"].keys() == {"processor", "cores", "platform", "device"}
    assert content["versions"]["jax"] == jax.__version__
    (row,) = content["rows"]
    assert (row["method"], row["size"], row["library"]) == ("ademamix", "tiny", "optax_zoo")
    columns = SCRIPTS[script].FIGURES
    assert columns.keys() <= row.keys()
    assert all(heading in text for heading in columns.values())
    again, shown = run(script, "--report")
    assert (again, shown) == (content, text)


def test_merges_are_measured_in_both_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "merge_memory.json"
    merge_memory.main(["--quick", "--out", str(path)])
    rows = {row["method"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows.keys() == {"uniform_soup(safetensors)", "uniform_soup(orbax)"}
    assert all(row.keys() >= merge_memory.FIGURES.keys() for row in rows.values())
    assert all(row["peak_megabytes"] > row["checkpoint_megabytes"] > 0 for row in rows.values())
    shown = capsys.readouterr().out
    assert all(heading in shown for heading in merge_memory.FIGURES.values())


def test_what_is_shared_out_is_measured_in_every_layout(run: Callable[..., tuple[dict, str]]) -> None:
    content, text = run("sharing", "--quick", "--methods", "muon", "mars", "adamw")
    rows = {row["method"]: row for row in content["rows"]}
    methods = ("muon(shard_over='data')", "mars(variant='shampoo', shard_over='data')")
    assert rows.keys() == {f"{method} {layout}" for method in methods for layout in ("replicated", "rows")}
    assert all(sharing.FIGURES.keys() <= row.keys() for row in rows.values())
    assert all(heading in text for heading in sharing.FIGURES.values())
    replicated = rows["muon(shard_over='data') replicated"]
    assert replicated["alone_operations"] == 1 and replicated["operations"] < 1


def test_traffic_is_read_from_the_program() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    function = jax.shard_map(
        lambda x: jax.lax.psum(jax.lax.all_gather(x, "data"), "data"), mesh=mesh, in_specs=spread, out_specs=whole
    )
    program = jax.jit(function).lower(jnp.ones((8, 16), jnp.bfloat16)).compile()
    kinds = hlo.traffic(program)
    assert kinds.keys() == {"all-gather", "all-reduce"}
    assert kinds["all-gather"].count == 1 and kinds["all-gather"].nbytes in (8 * 16 * 2, 8 * 16 * 4)


def test_operations_are_counted_as_often_as_they_run() -> None:
    def function(x: jax.Array, which: jax.Array) -> Any:
        squares = jax.lax.map(lambda m: m @ m.T, x)
        branch = jax.lax.switch(which, [lambda m: m, lambda m: m @ m, lambda m: m @ m @ m], x[0])
        return squares, branch, jnp.einsum("bij,bjk->bik", x, squares)

    program = jax.jit(function).lower(jnp.ones((12, 16, 16)), jnp.int32(0)).compile()
    assert hlo.flops(program) == 2 * 16**3 * (12 + 2 + 12)


def test_the_polar_error_is_that_of_the_arithmetic() -> None:
    contest = contests.MUON
    assert contest.make_polar and contest.make_peer_polar
    single = harness.polar_error(contest.make_polar(), "tiny")
    half = harness.polar_error(contest.make_polar(ns_dtype="bfloat16"), "tiny")
    assert single < 1e-4 < half < 0.5
    assert harness.polar_error(contest.make_peer_polar(), "tiny") < 1e-4


def test_peers_and_variants_are_rows_of_their_own(run: Callable[..., tuple[dict, str]]) -> None:
    content, _ = run("memory", "--quick", "--methods", "adabelief", "sgd")
    rows = {row["method"]: row for row in content["rows"]}
    assert rows.keys() == {"adabelief(rectify=False)", "adabelief", "sgd"}
    assert rows["adabelief"]["peer"] == "optax.adabelief"
    assert "peer" not in rows["sgd"]


def test_rows_of_other_methods_stay(run: Callable[..., tuple[dict, str]]) -> None:
    run("memory", "--quick", "--methods", "sgd")
    content, _ = run("memory", "--quick", "--methods", "lion")
    assert [row["method"] for row in content["rows"]] == ["sgd", "lion"]


def test_rows_of_other_versions_go(run: Callable[..., tuple[dict, str]], tmp_path: Path) -> None:
    content, _ = run("memory", "--quick", "--methods", "sgd")
    content["versions"]["jax"] = "0.0.1"
    (tmp_path / "results" / "memory.json").write_text(json.dumps(content))
    content, _ = run("memory", "--quick", "--methods", "lion")
    assert [row["method"] for row in content["rows"]] == ["lion"]


def test_unknown_method_is_named(run: Callable[..., tuple[dict, str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("memory", "--quick", "--methods", "adamm")
    assert "no method matches 'adamm'" in capsys.readouterr().err


def test_sizes_have_the_published_shapes() -> None:
    gpt2 = jax.tree.leaves(harness.shapes("gpt2"))
    assert (len(gpt2), harness.parameters(gpt2)) == (148, 124_439_808)
    assert len(jax.tree.leaves(harness.shapes("thousand"))) == 1000
    assert [leaf.shape for leaf in jax.tree.leaves(harness.shapes("layers"))] == 24 * [(1024, 1024)]


def test_streams_of_adam() -> None:
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    assert round(harness.bytes_moved(optax.adam(1e-3), params) / 2**22, 3) == 7


def test_contests_name_registered_methods() -> None:
    assert all(zoo.paper(name).library == "optax_zoo" for name in contests.CONTESTS)
    for name, pairs in contests.CONTESTS.items():
        for contest in pairs:
            contests.build(zoo.paper(name), contest)


@pytest.mark.parametrize(
    ("figure", "method", "aim"),
    [
        ("time_over_limit", "ademamix", 1.35),
        ("time_over_peer", "adabelief", 0.65),
        ("time_over_limit", "sgd", None),
        ("total_over_reference", "lion", None),
        ("total_over_reference", "grams", 0.9),
        ("total_over_reference", "normuon", 0.25),
        ("time_over_peer", "muon", 0.45),
    ],
)
def test_targets(figure: str, method: str, aim: float | None) -> None:
    assert contests.target("cpu", figure, method) == aim


@pytest.mark.parametrize(("value", "digits"), [(0.0, 0.0), (123456.0, 123500.0), (0.00012345, 0.0001234)])
def test_figures_are_rounded_to_significant_digits(value: float, digits: float) -> None:
    assert results.rounded(value) == digits
