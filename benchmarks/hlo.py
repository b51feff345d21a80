"""What a compiled program multiplies and what it sends between devices, read from its HLO."""

import dataclasses
import functools
import math
import re
from collections import defaultdict

import jax

_COLLECTIVE = re.compile(
    r" = (?P<shapes>.*?) (?P<kind>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(?P<name>[\w.-]+) = (?P<type>.*?) (?P<op>[\w-]+)\((?P<rest>.*)")
_NAME = re.compile(r"%([\w.-]+)")
_SUMMED = re.compile(r"lhs_contracting_dims=\{(?P<axes>[\d,]+)\}")
_CALLED = re.compile(r"(?:calls|to_apply|body|\w+_computations?)=(\{.*?\}|%[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(?P<n>\d+)"\}')
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
    """Operations of one device's matrix products: a loop's as often as it runs, of a conditional the dearest branch."""
    computations: dict[str, list[re.Match[str]]] = {}
    entry, inside = "", []
    for line in compiled.as_text().splitlines():
        if start := _COMPUTATION.match(line):
            inside = computations.setdefault(start["name"], [])
            entry = start["name"] if start["entry"] else entry
        elif instruction := _INSTRUCTION.match(line):
            inside.append(instruction)

    @functools.cache
    def of(computation: str) -> float:
        shapes = {instruction["name"]: instruction["type"] for instruction in computations[computation]}
        return sum(of_one(instruction["op"], instruction, shapes) for instruction in computations[computation])

    def of_one(op: str, instruction: re.Match[str], shapes: dict[str, str]) -> float:
        rest = instruction["rest"]
        if op == "dot":
            left = _shape(shapes[_NAME.findall(rest)[0]])
            summed = [left[int(axis)] for axis in _SUMMED.search(rest)["axes"].split(",")]
            return 2.0 * math.prod(_shape(instruction["type"])) * math.prod(summed)
        called = [of(name) for names in _CALLED.findall(rest) for name in _NAME.findall(names)]
        if op == "while":
            return float(_TRIPS.search(rest)["n"]) * sum(called)
        return max(called, default=0.0) if op == "conditional" else sum(called)

    return of(entry)


def _shape(array: str) -> list[int]:
    return [int(n) for n in _ARRAY.search(array)["shape"].split(",") if n]
