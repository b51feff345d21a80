"""Who takes part in a race: everything here is read from the registry."""

import fnmatch
from collections.abc import Sequence

import jax
from rich import box
from rich.console import Console
from rich.table import Table

import optax_zoo
from optax_zoo import Paper
from optax_zoo._core.naming import suggestion
from optax_zoo.race.errors import RaceError
from optax_zoo.race.results import REFERENCE
from optax_zoo.race.runner import averages_parameters, missing_arguments


def by_default(quick: bool = False) -> list[Paper]:
    """AdamW and the methods whose records say so; if `quick`, one of the zoo's of each family, that is, folder."""
    papers = [paper for paper in optax_zoo.papers().values() if paper.races_by_default]
    if quick:
        own = reversed([paper for paper in papers if paper.library == "optax_zoo"])
        papers = [*reversed({paper.make.__module__.rpartition(".")[0]: paper for paper in own}.values())]
    return _adamw_first(papers)


def select(patterns: Sequence[str]) -> list[Paper]:
    """The methods that match any of `patterns` (names or shell wildcards), AdamW always among them and first.

    Raises:
      RaceError: a pattern without a match, or a method named in full that a race cannot run.
    """
    return _adamw_first(matching(patterns))


def only(name: str, patterns: Sequence[str]) -> Paper:
    """The optimizer called `name`, else the one that matches `patterns`, else AdamW.

    Raises:
      RaceError: no or several methods, one that a race cannot run, or that averages its parameters itself.
    """
    if name and patterns:
        raise RaceError("--averages with a name and --optimizers exclude each other")
    papers = matching([name] if name else patterns or [REFERENCE])
    if len(papers) > 1:
        raise RaceError(f"--averages takes one optimizer, got {', '.join(paper.name for paper in papers)}")
    state = jax.eval_shape(papers[0].build(1.0).init, {"w": jax.ShapeDtypeStruct((2, 2), "float32")})
    if averages_parameters(state):
        raise RaceError(
            f"{papers[0].name}: averages its parameters itself; --averages takes an optimizer that does not"
        )
    return papers[0]


def matching(patterns: Sequence[str]) -> list[Paper]:
    """The methods that match any of `patterns`, in their order.

    Raises:
      RaceError: as `select`.
    """
    chosen: dict[str, Paper] = {}
    for pattern in patterns:
        matches = [paper for paper in map(optax_zoo.paper, optax_zoo.find(pattern)) if paper.trains]
        if not matches:
            known = [name for name, paper in optax_zoo.papers().items() if paper.trains]
            hint = suggestion(pattern, known) or "; see optax-zoo race --list"
            raise RaceError(f"{pattern!r}: no such method{hint}")
        able = [paper for paper in matches if not missing_arguments(paper)]
        if not able:
            needs = ", ".join(missing_arguments(matches[0]))
            raise RaceError(f"{matches[0].name}: needs {needs}, which a race does not supply")
        chosen |= {paper.name: paper for paper in able}
    return list(chosen.values())


def print_methods(patterns: Sequence[str], console: Console) -> None:
    """A table of all methods, or of those that match any of `patterns`."""
    default = {paper.name for paper in by_default()}
    chosen = [
        paper
        for paper in optax_zoo.papers().values()
        if paper.trains and (not patterns or any(fnmatch.fnmatchcase(paper.name, pattern) for pattern in patterns))
    ]
    narrow = {
        "": ["*" if paper.name in default else "" for paper in chosen],
        "method": [paper.name for paper in chosen],
        "kind": [paper.kind for paper in chosen],
        "library": [paper.library for paper in chosen],
        "state": [f"{paper.floats_per_parameter:g}" for paper in chosen],
    }
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, caption_justify="left")
    table.caption = "*: takes part by default; state: numbers per parameter"
    for heading, cells in narrow.items():
        table.add_column(heading, no_wrap=True, width=max(map(len, [heading, *cells])))
    table.add_column("paper", no_wrap=True, overflow="ellipsis", ratio=1)
    for *cells, paper in zip(*narrow.values(), chosen, strict=True):
        table.add_row(*cells, f"{paper.year} {paper.title}")
    console.print(table)


def _adamw_first(papers: list[Paper]) -> list[Paper]:
    return [optax_zoo.paper(REFERENCE), *(paper for paper in papers if paper.name != REFERENCE)]
