"""The merging functions as the command line sees them: their arguments, read from their signatures."""

import dataclasses
import fnmatch
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np
from jax import Array

from optax_zoo._core.naming import speaking_as, suggestion
from optax_zoo._core.paper import Paper, papers
from optax_zoo.merging.command.checkpoints import leaf_name
from optax_zoo.merging.command.errors import MergeError

Kind = Literal["number", "numbers", "number or numbers", "flag", "word", "leaves"]
Values = Mapping[str, Any]
Arrays = Mapping[str, Any]  # by part: an array, or a list of them
Rows = Callable[[str], Iterable[list[Any]]]


class Part(NamedTuple):
    """Checkpoints in an argument of a merging function."""

    help: str
    several: bool = False
    positional: bool = False
    same_dtype: bool = True


PARTS: Mapping[str, Part] = {
    "models": Part("the models to merge; the first decides what is no float", several=True, positional=True),
    "a": Part("the model at alpha 0", positional=True),
    "b": Part("the model at alpha 1", positional=True),
    "base": Part("the model from which all were fine-tuned"),
    "self_params": Part("the own model; the others are those received"),
    "fishers": Part("the diagonal Fisher information of each model", several=True, same_dtype=False),
    "hessians": Part("the diagonal Hessian of each model's loss", several=True, same_dtype=False),
    "hessian_base": Part("the diagonal Hessian of the base's loss", same_dtype=False),
}
"""What the library's merging functions call their trees."""

LEAVES: Mapping[str, str] = {
    "layers": "leaves that are interpolated, as wildcards of names such as 'encoder/*'",
    "ignore": "leaves that are only averaged, as wildcards of names (default: those of normalisation layers)",
}
"""What they call a choice of leaves."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An argument that is no checkpoint."""

    name: str
    kind: Kind
    help: str
    required: bool
    default: Any
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Method:
    """A merging function on the command line."""

    paper: Paper
    summary: str
    parts: tuple[str, ...]
    optional_parts: frozenset[str]
    options: tuple[Option, ...]

    def values(self, given: Values) -> dict[str, Any]:
        """The arguments that are no checkpoints, from words of the command line."""
        return {option.name: _value(option, given[option.name]) for option in self.options}

    def refuse_unmatched(self, given: Values, names: Collection[str]) -> None:
        """Raises MergeError for a wildcard that no leaf fits."""
        for option in self.options:
            for pattern in (option.kind == "leaves" and given[option.name]) or ():
                if not any(matches(name, pattern) for name in names):
                    close = suggestion(leaf_name(pattern), names)
                    raise MergeError(f"--{option.name}: no leaf fits {pattern!r}{close}")

    def rehearse(self, counts: Mapping[str, int], values: Values) -> None:
        """Merges models of two ones.

        Raises:
          MergeError: an argument is refused.
        """
        ones = np.ones(2, np.float32)
        self.first_pass(lambda part: [[ones] * counts[part]], values, counts)
        self("rehearsal", {part: [ones] * n if PARTS[part].several else ones for part, n in counts.items()}, values)

    def first_pass(self, rows: Rows, values: Values, counts: Mapping[str, int]) -> Values:
        """The arguments with which each leaf is merged, after what must be known of all leaves.

        Args:
          rows: for a part, each floating leaf of its checkpoints.
          values: the arguments that were given.
          counts: checkpoints of each part.
        """
        prepare = self.paper.first_pass
        with _telling(), speaking_as(self.paper.name):
            return values if prepare is None else prepare(rows, values, counts)

    def __call__(self, name: str, arrays: Arrays, values: Values) -> Array:
        """The merged leaf `name`."""
        trees = {
            part: [{name: x} for x in held] if isinstance(held, list) else {name: held} for part, held in arrays.items()
        }
        with _telling():
            merged = self.paper.make(**trees, **values)
        tree = merged[0] if isinstance(merged, tuple) else merged
        return tree[name]


class _telling:
    """Raises MergeError with the sentence of a merging function's error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError):
            raise MergeError(str(error)) from error


def methods() -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that the command offers, and of the others the argument that only Python can give."""
    offered, refused = {}, {}
    for name, paper in papers().items():
        if paper.kind == "merge":
            found = _read(paper)
            if isinstance(found, Method):
                offered[name] = found
            else:
                refused[name] = found
    return offered, refused


_ARXIV = re.compile(r" \(arXiv:[^)]*\)")


def _read(paper: Paper) -> Method | str:
    """The method, or a required argument that no word can give."""
    text = inspect.getdoc(paper.make) or ""
    helps = _argument_texts(text)
    parts, optional, options = [], set(), []
    for name, parameter in inspect.signature(paper.make).parameters.items():
        required = parameter.default is parameter.empty
        if name in PARTS:
            parts.append(name)
            if not required:
                optional.add(name)
            continue
        kind, words = _kind(name, parameter.annotation)
        if kind is not None:
            default = None if required else parameter.default
            options.append(Option(name, kind, helps.get(name, ""), required, default, words))
        elif required:
            return name
    return Method(
        paper,
        _ARXIV.sub("", text.partition("\n")[0]).replace("`", ""),
        tuple(parts),
        frozenset(optional),
        tuple(options),
    )


def _kind(name: str, annotation: Any) -> tuple[Kind | None, tuple[str, ...]]:
    if name in LEAVES:
        return "leaves", ()
    if annotation is bool:
        return "flag", ()
    if get_origin(annotation) is Literal:
        return "word", get_args(annotation)
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    sequence = any(get_origin(member) is Sequence and get_args(member) != (Any,) for member in members)
    if float in members or int in members:
        return ("number or numbers" if sequence else "number"), ()
    return ("numbers" if sequence else None), ()


def _argument_texts(text: str) -> dict[str, str]:
    """The descriptions under "Args:" of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^  (\w+): (.*?)(?=^  \w|\Z)", section[1] if section else "", flags=re.DOTALL | re.MULTILINE)
    return {name: " ".join(words.split()).replace(" None: equal.", "").rstrip(".") for name, words in found}


def matches(name: str, pattern: str) -> bool:
    """Whether the leaf `name` fits a wildcard, in which keys may be joined by dots too."""
    return fnmatch.fnmatchcase(name, leaf_name(pattern))


def _value(option: Option, given: Any) -> Any:
    if given is None:
        return option.default
    if option.kind == "leaves":
        return lambda path, leaf: any(matches(path, pattern) for pattern in given)
    if option.kind == "number or numbers" and len(given) == 1:
        return given[0]
    return given
