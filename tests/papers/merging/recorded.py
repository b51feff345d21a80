"""Recorded merges of the authors' code."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden"


class Recorded:
    """The arrays of one file by their prefixes, and its description."""

    def __init__(self, case: str) -> None:
        with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
            self.arrays = dict(file)
        self.meta = json.loads(str(self.arrays.pop("meta")))

    def tree(self, prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): x for key, x in self.arrays.items() if key.startswith(prefix)}

    def assert_equal(self, ours: Any, prefix: str) -> None:
        theirs = self.tree(prefix)
        assert theirs and ours.keys() == theirs.keys()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=self.meta["rtol"]), ours, theirs)
