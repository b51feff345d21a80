"""Which laws optax's methods break, and why."""

from collections.abc import Mapping

_BREAKS: Mapping[str, Mapping[str, str]] = {}
"""Law -> reason -> the methods it holds for, separated by spaces."""


def breaks_of(name: str) -> dict[str, str]:
    """Law -> reason for one method."""
    return {
        law: why
        for law, reasons in _BREAKS.items()
        for why, names in reasons.items()
        if name in names.split()
    }
