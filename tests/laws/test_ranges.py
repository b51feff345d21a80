"""A number out of its range, and a keyword that does not exist, are refused in one sentence with the names involved."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optax
import pytest

from optax_zoo import Paper
from tests.laws.harness import Violation, arguments_of, law, numbers, rate, required

INTERVAL = r"^{}: {} must be in ([\[(])(\S+), (\S+)([\])]), got "


def factories(paper: Paper) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """The factory and the transform by name, each with the arguments it requires."""
    needed = required(paper, rate(paper), optax.sgd(rate(paper)))
    yield paper.name, paper.make, needed
    if paper.transform is not None:
        known = inspect.signature(paper.transform).parameters
        yield (
            paper.transform.__name__,
            paper.transform,
            {name: value for name, value in arguments_of(paper).items() if name in known},
        )


def just_outside(interval: re.Match[str], integer: bool) -> Iterator[float]:
    """The nearest number below an interval and the nearest above it."""
    opening, low, high, closing = interval.groups()
    low, high = float(low), float(high)
    for bound, is_in, away in ((low, opening == "[", -math.inf), (high, closing == "]", math.inf)):
        if integer and math.isfinite(bound):
            yield int(bound) + (int(math.copysign(1, away)) if is_in else 0)
        elif not integer and not (is_in and math.isinf(bound)):
            yield float(np.nextafter(bound, away)) if is_in else bound


def assert_refused(make: Callable[..., Any], arguments: dict[str, Any], name: str) -> None:
    """Raises a `Violation` if NaN passes as the argument of that name."""
    try:
        make(**{**arguments, name: math.nan})
    except (TypeError, ValueError):
        return
    raise Violation("numbers out of their range are accepted")


@law(in_words=True)
def test_ranges(paper: Paper) -> None:
    for _, make, needed in factories(paper):
        for name in numbers(make):
            assert_refused(make, needed, name)
    for spoken, make, needed in factories(paper):
        for name, types in numbers(make).items():
            expected = INTERVAL.format(spoken.removeprefix("scale_by_"), name)
            with pytest.raises(ValueError, match=expected) as refusal:
                make(**{**needed, name: math.nan})
            interval = re.match(expected, str(refusal.value))
            for value in just_outside(interval, integer=float not in types):
                with pytest.raises(ValueError, match=expected):
                    make(**{**needed, name: value})
        for name in inspect.signature(make).parameters:
            with pytest.raises(TypeError, match=rf"^{spoken}: .*'{name}_'.*did you mean.*'{name}'"):
                make(**needed, **{f"{name}_": 0.5})
