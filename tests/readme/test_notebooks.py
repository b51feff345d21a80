"""The notebooks run from top to bottom and are committed without outputs."""

import json
import types
from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "colabs").glob("*.ipynb"))


def code_cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebook_runs(notebook):
    module = types.ModuleType(notebook.stem)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, cell in enumerate(code_cells(notebook)):
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), module.__dict__)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebook_is_committed_without_outputs(notebook):
    cells = code_cells(notebook)
    assert cells
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
