"""What methods decide about leaves, told to whoever asks: `describe` prints it."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple


class Note(NamedTuple):
    """A decision of a method about one leaf."""

    method: str
    path: str
    shape: tuple[int, ...]
    decision: str


_NOTES: contextvars.ContextVar[dict[tuple[str, str], Note] | None] = contextvars.ContextVar(
    "optax_zoo_notes", default=None
)


def note(method: str, path: str, shape: tuple[int, ...], decision: str) -> None:
    """Tells an enclosing `taking_notes`; what is said of a leaf last counts."""
    notes = _NOTES.get()
    if notes is not None:
        notes[method, path] = Note(method, path, tuple(shape), decision)


@contextlib.contextmanager
def taking_notes() -> Iterator[dict[tuple[str, str], Note]]:
    """What is noted inside, by method and path."""
    notes: dict[tuple[str, str], Note] = {}
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
