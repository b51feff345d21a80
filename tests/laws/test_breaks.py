"""Records name only laws that exist, and give a reason that `describe` can print."""

from pathlib import Path

from optax_zoo import Paper
from tests.laws.harness import law

FOLDERS = ("laws", "checkpoint", "frameworks")


def known() -> set[str]:
    tests = Path(__file__).parents[1]
    return {path.stem.removeprefix("test_") for folder in FOLDERS for path in (tests / folder).glob("test_*.py")}


@law
def test_breaks(paper: Paper) -> None:
    unknown = set(paper.breaks) - known()
    assert not unknown, f"no such laws: {', '.join(sorted(unknown))}"
    assert all(reason.strip() and "\n" not in reason for reason in paper.breaks.values())
