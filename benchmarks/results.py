"""Figures as JSON with the machine and versions they belong to, and as a table."""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import optax_zoo as zoo
from benchmarks import contests

Row = dict[str, Any]

KEY = ("method", "size")
"""The fields that tell rows apart."""


def command_line(script: str, description: str | None, library: str = "*") -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{script}", description=description)
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="PATTERN", help="which methods")
    parser.add_argument("--library", default=library, metavar="PATTERN", help="whose methods: optax_zoo, optax")
    parser.add_argument("--quick", action="store_true", help="a toy tree and few rounds: does it run at all?")
    parser.add_argument("--out", type=Path, help="JSON file; rows of the same machine and versions stay in it")
    parser.add_argument("--report", action="store_true", help="print the file's figures, measure nothing")
    return parser


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[tuple[zoo.Paper, contests.Contest]]:
    """The contests that `--methods` and `--library` name, or one sentence and the end."""
    try:
        return contests.select(options.methods, options.library)
    except ValueError as error:
        parser.error(f"--methods: {error}")


def destination(script: str, out: Path | None) -> Path:
    return out or Path(__file__).parent / "results" / f"{script}.{jax.default_backend()}.json"


def spread(values: np.ndarray) -> list[float]:
    """First and third quartile."""
    return [rounded(q) for q in np.quantile(values, [0.25, 0.75])]


def rounded(value: float, digits: int = 4) -> float:
    """To significant digits."""
    return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))


def save(path: Path, script: str, rows: Sequence[Row]) -> None:
    """Writes the rows; those that the file already has for other methods or sizes stay if nothing else changed."""
    head = {
        "script": script,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
        },
        "versions": {
            "python": platform.python_version(),
            "optax_zoo": zoo.__version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        },
    }
    old = load(path) if path.exists() else {}
    kept = old["rows"] if all(old.get(key) == value for key, value in head.items()) else []
    merged = {tuple(row[key] for key in KEY): row for row in [*kept, *rows]}
    content = {
        **head,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": [*merged.values()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def report(path: Path, figures: Mapping[str, str]) -> str:
    """The file as text.

    Args:
      path: what `save` wrote.
      figures: field -> heading; a field with a target shows it behind the figure.
    """
    if not path.exists():
        raise SystemExit(f"no results at {path}; run the benchmark without --report first")
    content = load(path)
    machine, versions = content["machine"], content["versions"]
    lines = [
        f"{content['script']}, {content['date']}: {machine['device']}, {machine['processor']},"
        f" {machine['cores']} cores; jax {versions['jax']}, optax {versions['optax']}, optax_zoo"
        f" {versions['optax_zoo']}",
        "",
    ]
    table = [["method", "size", *figures.values()]]
    for row in content["rows"]:
        name = row["method"].partition("(")[0]
        real = row["size"] != "tiny"
        aims = {field: contests.target(machine["platform"], field, name) if real else None for field in figures}
        table.append([row["method"], row["size"], *(_cell(row.get(field), aims[field]) for field in figures)])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines += ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join(lines)


def _cell(value: Any, aim: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if aim is None:
        return f"{value:.3g}"
    return f"{value:.3g} ({'<=' if value <= aim else '>'} {aim:g})"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
