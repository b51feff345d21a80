"""README's snippets run, its table is current, and continuous integration runs the commands it names."""

import doctest
import re
import tomllib
import types
from collections.abc import Iterator

import jax
import pytest

from optax_zoo._core import paper as registry
from tests.readme.methods_table import README, with_current_table

TEXT = README.read_text(encoding="utf-8")
ROOT = README.parent


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def scratch_registry(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_PAPERS", dict(registry.papers()))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("scratch_registry")
def test_python_snippets_run_in_reading_order():
    snippets = fenced("python")
    assert len(snippets) > 5
    for number, snippet in enumerate(snippets):
        module = types.ModuleType(f"readme_{number}")
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), module.__dict__)
        for name, check in list(vars(module).items()):
            if name.startswith("test_"):
                check()


@pytest.mark.usefixtures("scratch_registry")
def test_error_sentences_are_as_printed():
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    sessions = fenced("pycon")
    assert sessions
    for session in sessions:
        runner.run(doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0))
    assert runner.summarize(verbose=False).failed == 0


def test_table_of_methods_is_current():
    assert with_current_table(TEXT) == TEXT, "run `python -m tests.readme.methods_table`"


def test_no_link_or_picture_is_dangling():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT) + re.findall(r'src="([^"]+)"', TEXT)
    local = [target for target in targets if not target.startswith("https://")]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_continuous_integration_runs_the_commands_of_readme():
    marked = dict(re.findall(r"^<!-- (\w+)-command -->\n```sh\n(.+)\n```$", TEXT, flags=re.MULTILINE))
    assert marked == {
        "race": 'pip install -e ".[race]" && optax-zoo race',
        "test": 'pip install -e ".[test]" && pytest',
    }
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "command=$(command_in_readme test)" in run
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    stages = {stage for line in re.findall(r"\.ci/run (.+)", workflow) for stage in line.split()}
    assert stages == {"tests", "lint", "race", "notebooks"}


def test_lower_bounds_are_the_oldest_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["race"], *extras["merge"], *extras["test"]]
    bounds = {bound.replace(">=", "==") for bound in required if not bound.startswith("optax-zoo[")}
    pins = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    assert bounds <= set(pins)
