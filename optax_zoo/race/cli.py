"""The arguments of `optax-zoo race`."""

import argparse
import math
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optax_zoo.race.schedules import DEFAULT, SCHEDULES

EXTRA = frozenset({"flax", "matplotlib", "rich", "scipy", "sklearn"})

DESCRIPTION = """\
Trains every optimizer on real data with the same budget, a grid of learning rates times several seeds, and shows
which one to take: a leaderboard, results.json, leaderboard.md and pictures.
"""

EPILOG = """\
examples:
  optax-zoo race                                    handwritten digits, about three minutes on two cores
  optax-zoo race --quick                            a first look in half a minute
  optax-zoo race --task pysource --optimizers "muon,ademamix,schedule_free*"
  optax-zoo race --text my_notes/ --steps 1000      a small language model of your own text
  optax-zoo race --averages adamw                   raw against averaged weights of one optimizer
  optax-zoo race --resume                           goes on where Ctrl-C stopped it

How it is judged: the learning rate is chosen on one split and the loss reported on another; AdamW always runs,
on the same initialisations and batches, and every difference to it is tested over seeds.

schedules, each after a warm-up over the first 5 % of the steps, as a share of the learning rate:
"""


def _schedules() -> str:
    """A paragraph for each schedule, its name in front."""
    width = 2 + max(map(len, SCHEDULES))
    return "".join(
        textwrap.fill(
            f"  {name:<{width}}{shape.text}{'; ' * bool(shape.exception)}{shape.exception}",
            110,
            subsequent_indent=" " * (2 + width),
        )
        + "\n"
        for name, shape in SCHEDULES.items()
    )


def add(commands: Any) -> None:
    """Adds the command to the subparsers of `optax-zoo`."""
    parser = commands.add_parser(
        "race",
        help="train optimizers on real data and rank them",
        description=DESCRIPTION,
        epilog=EPILOG + _schedules(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the race that was asked for with `arguments`; returns the exit status."""
    from optax_zoo.race import command

    again = shlex.join(["optax-zoo", *(word for word in arguments if word != "--resume"), "--resume"])
    return command.race(options, again)


def _add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what runs")
    what.add_argument(
        "--optimizers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names or wildcards, separated by commas or spaces (default: the flagships and a few "
        "references, starred in --list); AdamW always runs",
    )
    what.add_argument(
        "--task",
        choices=("digits", "pysource"),
        help=(
            "digits: scikit-learn's handwritten digits, a small perceptron (default); pysource: the source text of "
            "Python's standard library, a small byte-level transformer (some minutes for each optimizer)"
        ),
    )
    what.add_argument("--text", type=_path, metavar="PATH", help="your own text file or folder instead of --task")
    what.add_argument(
        "--averages",
        nargs="?",
        const="",
        metavar="NAME",
        help="instead of a race: raw against averaged weights of one optimizer (default: that of --optimizers, or "
        "AdamW), all averages watching the same run at its best learning rate; constant and with --schedule",
    )
    what.add_argument("--list", action="store_true", help="show all methods (or those of --optimizers) and exit")
    budget = parser.add_argument_group("budget, the same for every optimizer")
    budget.add_argument("--steps", type=_positive_integer, metavar="N", help="default: 600 digits, 300 text")
    budget.add_argument("--seeds", type=_positive_integer, metavar="N", help="default: 5 digits, 3 text")
    budget.add_argument(
        "--learning-rates",
        nargs="+",
        type=_positive_numbers,
        metavar="LR",
        help="the same values for every optimizer; default: a grid of factors 2 around the rate where each "
        "method's own record says to start",
    )
    budget.add_argument(
        "--schedule",
        choices=tuple(SCHEDULES),
        default=DEFAULT,
        metavar="NAME",
        help="the learning rate over the steps, one of those below (default: %(default)s)",
    )
    budget.add_argument("--quick", action="store_true", help="few steps, few rates, one optimizer of each family")
    files = parser.add_argument_group("files")
    files.add_argument("--out", type=_path, metavar="FOLDER", help="default: race-digits, race-pysource, race-text")
    files.add_argument("--resume", action="store_true", help="keep what is done already in --out and go on")


def _path(word: str) -> Path:
    if not word:
        raise argparse.ArgumentTypeError("must name a file or folder, got ''")
    return Path(word)


def _positive_integer(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {word!r}")
    return int(word)


def _positive_numbers(words: str) -> list[float]:
    return [_positive_number(word) for word in words.split(",")]


def _positive_number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"must be positive numbers, got {word!r}")
    return number
