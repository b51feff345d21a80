"""What a compiled program sends between devices, read from its HLO."""

import dataclasses
import math
import re
from collections import defaultdict

import jax

_COLLECTIVE = re.compile(
    r" = (?P<shapes>.*?) (?P<kind>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind: how many, and bytes of their results on one device."""

    count: int
    nbytes: int


def traffic(compiled: jax.stages.Compiled) -> dict[str, Traffic]:
    """The collectives of a compiled program by kind; what stands in a loop counts once."""
    found: dict[str, list[int]] = defaultdict(list)
    for line in compiled.as_text().splitlines():
        if match := _COLLECTIVE.search(line):
            found[match["kind"]].append(sum(map(_nbytes, _ARRAY.finditer(match["shapes"]))))
    return {kind: Traffic(len(sizes), sum(sizes)) for kind, sizes in found.items()}


def _nbytes(array: re.Match[str]) -> int:
    bits = _BITS.search(array["dtype"])
    entries = math.prod(int(n) for n in array["shape"].split(",") if n)
    return entries * (int(bits[0]) if bits else 8) // 8


def flops(compiled: jax.stages.Compiled) -> float:
    """Operations of one device, as XLA counts them: a loop's body once, of a conditional the dearest branch."""
    return compiled.cost_analysis()["flops"]
