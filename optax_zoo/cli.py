"""The command line: `optax-zoo race` and `optax-zoo merge`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from optax_zoo.merging.command import cli as merge
from optax_zoo.merging.command.errors import MergeError
from optax_zoo.race import cli as race
from optax_zoo.race.errors import RaceError


class Command(NamedTuple):
    """One word after `optax-zoo`."""

    name: str
    extra: frozenset[str]  # packages of the extra of the same name
    add: Callable[..., None]  # makes the parser
    run: Callable[[argparse.Namespace, Sequence[str]], int]
    interrupted: str  # what Ctrl-C has prevented


COMMANDS = (
    Command("race", race.EXTRA, race.add, race.run, "interrupted before training began"),
    Command("merge", merge.EXTRA, merge.add, merge.run, "interrupted; nothing was written"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `optax-zoo` with the arguments `argv` (default: those of the process).

    Returns:
      Exit status: 0, 1 after an error told in one sentence, 2 for wrong usage, 130 after an interruption.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="optax-zoo", description="Optimizer papers, side by side.")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        command.add(parsers)
    options = parser.parse_args(arguments)
    command = next(command for command in COMMANDS if command.name == options.command)
    try:
        return command.run(options, arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in command.extra:
            raise
        install = f'pip install "optax-zoo[{command.name}]"'
        return _fail(command, f'needs the extra "{command.name}" ({missing} is missing); {install}')
    except (RaceError, MergeError) as error:
        return _fail(command, str(error))
    except KeyboardInterrupt:
        return _fail(command, command.interrupted, status=130)


def _fail(command: Command, sentence: str, status: int = 1) -> int:
    print(f"optax-zoo {command.name}: {sentence}", file=sys.stderr)
    return status
