"""The figures that README and the benchmarks' results show are there, and of the registered methods."""

import json
import re
from pathlib import Path

import pytest

import optax_zoo
from tests.readme.methods_table import README

ROOT = README.parent
RACE = re.search(r"<!-- race:begin -->\n(.*?)<!-- race:end -->", README.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_shows_a_real_race() -> None:
    assert RACE is not None
    raced = set(re.findall(r"^\| \**(\w+)\** \|", RACE[1], re.MULTILINE)) - {"optimizer"}
    assert {paper.name for paper in optax_zoo.papers().values() if paper.races_by_default} == raced
    pictures = [ROOT / target for target in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", RACE[1])]
    assert len(pictures) >= 3
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("script", ["step_time", "compile_time", "memory", "sharing"])
def test_benchmark_results_are_committed(script: str) -> None:
    files = list(Path(ROOT / "benchmarks" / "results").glob(f"{script}.*.json"))
    assert files
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        assert content["machine"]["device"] and content["versions"]["jax"] and content["date"]
        measured = {row["method"].partition("(")[0] for row in content["rows"]}
        assert measured and measured <= set(optax_zoo.papers())
