"""What the command tells its user instead of a traceback."""

from pathlib import Path


class RaceError(Exception):
    """Something the user can put right; the message is one sentence."""


def printable(path: Path | str) -> str:
    """The path with what no terminal or UTF-8 file can show (control characters, stray bytes) escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
