"""Which method is speaking: names in error sentences, and keywords that nobody misspells silently."""

import contextlib
import contextvars
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SPEAKER: contextvars.ContextVar[str] = contextvars.ContextVar("optax_zoo_speaker", default="optax_zoo")


def speaker() -> str:
    """The public method under construction, without the prefix `scale_by_`."""
    return _SPEAKER.get()


@contextlib.contextmanager
def speaking_as(name: str) -> Iterator[None]:
    """Errors raised inside begin with `name`, unless an outer method already speaks."""
    if speaker() != "optax_zoo":
        yield
        return
    token = _SPEAKER.set(name.removeprefix("scale_by_"))
    try:
        yield
    finally:
        _SPEAKER.reset(token)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'a', 'b'?` for the closest known words, or an empty string."""
    close = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def method(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a public factory: its name begins every error, and an unknown keyword names the closest one.

    Raises:
      TypeError: when called with arguments that `function` does not take.
    """
    signature = inspect.signature(function)
    name = function.__name__
    takes = f"; it takes {', '.join(signature.parameters)}"

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        unknown = [word for word in kwargs if word not in signature.parameters]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            hint = suggestion(unknown[0], signature.parameters) or takes
            raise TypeError(f"{name}: no argument {unknown[0]!r}{hint}")
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}{takes}") from None
        with speaking_as(name):
            return function(*args, **kwargs)

    return checked
