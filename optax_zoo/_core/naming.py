"""Which method is speaking: names in error sentences, and keywords that nobody misspells silently."""

import contextlib
import contextvars
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

import numpy as np

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
      TypeError: when called with arguments that `function` does not take, or with something else than True or False
        for an argument of type `bool`.
    """
    signature = inspect.signature(function)
    name = function.__name__
    flags = [word for word, parameter in signature.parameters.items() if parameter.annotation is bool]
    takes = f"; it takes {', '.join(signature.parameters)}"

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        unknown = [word for word in kwargs if word not in signature.parameters]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            hint = suggestion(unknown[0], signature.parameters) or takes
            raise TypeError(f"{name}: no argument {unknown[0]!r}{hint}")
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{name}: {error}{takes}") from None
        for flag in flags:
            if flag in given and not isinstance(given[flag], bool | np.bool_):
                raise TypeError(f"{name}: {flag} must be True or False, got {given[flag]!r}")
        with speaking_as(name):
            return function(*args, **kwargs)

    return checked
