"""Small checkpoints of both formats for the tests of the command."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from safetensors.numpy import save_file

from optax_zoo import cli

DTYPES = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F16": np.float16,
    "F64": np.float64,
    "I64": np.int64,
}


def tree(seed: int) -> Any:
    """Leaves of every dtype that weights have, numbers, a list, and a key such as Haiku's."""
    generator = np.random.default_rng(seed)

    def array(dtype: Any, *shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(dtype)

    layers = {f"layer_{i}": {"kernel": array(dtype, 6, 4)} for i, dtype in enumerate([*DTYPES.values()][:-1])}
    return {
        "encoder": layers,
        "mlp/~/norm": {"scale": array(np.float32, 5)},
        "stack": [array(np.float32, 3), array(np.float32, 2, 2, 2)],
        "zeros": np.zeros((4, 4), np.float32),
        "temperature": array(np.float32),
        "step": np.asarray(7 + seed),
        "table": np.arange(6).reshape(2, 3) + seed,
    }


def positive(seed: int) -> Any:
    """A tree of squares."""
    return jax.tree.map(lambda x: np.square(x.astype(np.float32)), tree(seed))


def flat(tree: Any, separator: str = "/") -> dict[str, Any]:
    named = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=separator): np.asarray(x) for path, x in named}


def save(tree: Any, path: Path) -> Path:
    """Writes a checkpoint with the library of its format."""
    if path.suffix != ".safetensors":
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
        return path
    save_file({name.replace("/", "."): x.copy(order="C") for name, x in flat(tree, ".").items()}, path)
    return path


def load(path: Path) -> dict[str, np.ndarray]:
    """Reads a checkpoint with the library of its format: arrays by name."""
    if path.is_dir():
        with ocp.PyTreeCheckpointer() as checkpointer:
            return {name.replace(".", "/"): x for name, x in flat(checkpointer.restore(path)).items()}
    found = safetensors.deserialize(path.read_bytes())
    return {
        name.replace(".", "/"): np.frombuffer(x["data"], DTYPES[x["dtype"]]).reshape(x["shape"]) for name, x in found
    }


def merge(*words: Any) -> int:
    return cli.main(["merge", *map(str, words)])
