"""The arguments of `optax-zoo merge`, made from the signatures of the merging functions."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optax_zoo.merging.command.methods import LEAVES, PARTS, Method, Option, methods

EXTRA = frozenset({"orbax", "rich", "tensorstore"})

DESCRIPTION = """\
Merges checkpoints into one, leaf by leaf: memory holds the largest leaf of each model, not the models.
"""

EPILOG = """\
examples:
  optax-zoo merge uniform_soup run_1.safetensors run_2.safetensors --out soup.safetensors
  optax-zoo merge uniform_soup runs/1/ckpt runs/2/ckpt runs/3/ckpt --weights 2,1,1 --out soup
  optax-zoo merge task_arithmetic french german --base pretrained --alpha 0.4 --out both
  optax-zoo merge fisher_merge a b --fishers fisher_a fisher_b --out merged
  optax-zoo merge METHOD --help                     what METHOD computes, and its options

A checkpoint is a folder that Orbax saved, or the safetensors file or folder of a model; both can be mixed. An --out
that ends in .safetensors becomes such a file, any other a folder for Orbax. It appears when it is complete; whatever
stops the merge leaves nothing under its name.
{only_python}"""


class _MethodParser(argparse.ArgumentParser):
    """The parser of one method; one that has a `refusal` says so whatever follows."""

    refusal = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class does."""
        if self.refusal:
            self.error(self.refusal)
        return super().parse_known_args(args, namespace)


def add(commands: Any) -> None:
    """Adds the command to the subparsers of `optax-zoo`."""
    offered, refused = methods()
    told = "".join(f"\n{name} needs {argument}, which only Python can give." for name, argument in refused.items())
    parser = commands.add_parser(
        "merge",
        help="merge checkpoints into one",
        description=DESCRIPTION,
        epilog=EPILOG.format(only_python=told),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(
        dest="method", required=True, metavar="METHOD", title="methods", parser_class=_MethodParser
    )
    for method in offered.values():
        title = method.summary.rstrip(".").replace("%", "%%")
        _add_method(names.add_parser(method.paper.name, help=title, description=_description(method)), method)
    for name, argument in refused.items():
        parser = names.add_parser(name)
        parser.refusal = f"it needs {argument}, which only Python can give: call optax_zoo.{name}"


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Merges what was asked for; returns the exit status."""
    del arguments
    from optax_zoo.merging.command import merge

    return merge.merge(methods()[0][options.method], options)


def _description(method: Method) -> str:
    paper = method.paper
    return f"{method.summary} {paper.title}, {paper.year}, {paper.link}".replace("%", "%%")


def _add_method(parser: argparse.ArgumentParser, method: Method) -> None:
    checkpoints = parser.add_argument_group("checkpoints")
    for name in method.parts:
        part = PARTS[name]
        kind: dict[str, Any] = {"type": _path, "metavar": "CKPT", "help": part.help}
        if part.several:
            kind["nargs"] = "+"
        if part.positional:
            checkpoints.add_argument(name, **kind)
        else:
            checkpoints.add_argument(_flag(name), required=name not in method.optional_parts, **kind)
    checkpoints.add_argument(
        "--out", type=_path, required=True, metavar="PATH", help="the new checkpoint; NAME.safetensors, or a folder"
    )
    checkpoints.add_argument("--force", action="store_true", help="replace --out if it is a checkpoint already")
    if method.options:
        group = parser.add_argument_group("method")
        for option in method.options:
            _add_option(group, option)


def _add_option(group: Any, option: Option) -> None:
    text = LEAVES.get(option.name, option.help).replace("%", "%%")
    if option.default is not None and option.kind != "flag":
        text += f" (default: {option.default})"
    if option.kind == "flag":
        group.add_argument(
            _flag(option.name),
            action=argparse.BooleanOptionalAction,
            default=option.default,
            help=f"{text} (default: {'yes' if option.default else 'no'})",
        )
        return
    kinds: dict[str, dict[str, Any]] = {
        "number": {"type": _number, "metavar": "X"},
        "numbers": {"type": _numbers, "metavar": "X,X"},
        "number or numbers": {"type": _numbers, "metavar": "X"},
        "word": {"choices": option.words},
        "leaves": {"nargs": "+", "metavar": "NAME"},
    }
    group.add_argument(_flag(option.name), required=option.required, help=text, **kinds[option.kind])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _path(word: str) -> Path:
    if not word:
        raise argparse.ArgumentTypeError("must name a file or folder, got ''")
    return Path(word)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {word!r}") from None


def _numbers(words: str) -> list[float]:
    return [_number(word) for word in words.split(",")]
