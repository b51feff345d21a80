"""The registry: one record per method, from which tables, tests, the race and citations are generated."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import optax

from optax_zoo._core.naming import suggestion
from optax_zoo._core.trees import PyTree

Kind = Literal["optimizer", "wrapper", "transform", "merge", "function"]

_PAPERS: dict[str, "Paper"] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """What the library knows about one method.

    Attributes:
      name: the method's name, which is the factory's.
      title, authors ("Last, First"), year, arxiv (id), url (where there is no arXiv id), algorithm: the source.
      make: the factory. `optimizer`: make(learning_rate, ...); `wrapper`: make(inner, ...); `transform`: make(...).
        Of what is no update rule it is the method itself: `merge`: make(models, ...) or make(base, models, ...);
        `function`: anything else.
      transform: its `scale_by_x`, if the learning rate can be separated.
      kind: see `make`.
      states: the state classes by which `cite` and `describe` recognise the method.
      needs: extra arguments of `update` it cannot do without ("params", "value", ...).
      floats_per_parameter: size of its state, in numbers per parameter (of a wrapper: beyond the inner one's).
      elementwise: whether an entry's update depends on no other entry.
      relative_learning_rate: where a search for the rate should start, relative to AdamW's.
      races_by_default: whether a race without named optimizers runs it.
      peak_argument: the argument of `make` that wants the peak of the learning rate, where that is a schedule.
      base: what a wrapper wraps, and what a transform precedes, in `build`: base(learning_rate).
      example: keyword arguments that complete `make` where it has required ones.
      probe: further ones under which a few steps show what every argument does, for the laws.
      scaled: number of steps of a run -> further ones that suit its length. A race compares the averages that have it.
      first_pass: of a merge that needs numbers of whole trees, what is known before its leaves are merged one by one:
        first_pass(rows, values, counts) -> the arguments of `make`, from rows(argument), each leaf of the models'
        trees in turn, from the arguments given and from the number of trees in each.
      golden: recorded trajectories of the authors' code that the parity test replays.
      breaks: laws it cannot obey, with the reason.
      library: whose code it is.
    """

    name: str
    title: str
    authors: tuple[str, ...]
    year: int
    make: Callable[..., Any]
    arxiv: str = ""
    url: str = ""
    algorithm: str = ""
    transform: Callable[..., Any] | None = None
    kind: Kind = "optimizer"
    states: tuple[type, ...] = ()
    needs: tuple[str, ...] = ()
    floats_per_parameter: float = 0.0
    elementwise: bool = True
    relative_learning_rate: float = 1.0
    races_by_default: bool = False
    peak_argument: str = ""
    base: Callable[[Any], optax.GradientTransformation] = optax.adamw
    example: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    probe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scaled: Callable[[int], Mapping[str, Any]] | None = None
    first_pass: Callable[..., Mapping[str, Any]] | None = None
    golden: tuple[str, ...] = ()
    breaks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    library: str = "optax_zoo"

    @property
    def trains(self) -> bool:
        """Whether it is an update rule, or a part of one."""
        return self.kind in ("optimizer", "wrapper", "transform")

    def build(self, learning_rate: Any, peak: Any = None) -> optax.GradientTransformationExtraArgs:
        """A ready-to-train optimizer for every kind: wrappers wrap `base`, transforms precede it.

        Args:
          learning_rate: number, array or schedule.
          peak: the largest value of a schedule, for methods that ask for it.
        """
        if self.kind == "optimizer":
            known = {self.peak_argument: peak} if self.peak_argument and peak is not None else {}
            tx = self.make(learning_rate, **{**self.example, **known})
        elif self.kind == "wrapper":
            tx = self.make(self.base(learning_rate), **self.example)
        elif self.kind == "transform":
            tx = optax.chain(self.make(**self.example), self.base(learning_rate))
        else:
            raise TypeError(f"{self.name}: a {self.kind} is no update rule; call optax_zoo.{self.name} itself")
        return optax.with_extra_args_support(tx)

    def arguments(self, steps: int) -> dict[str, Any]:
        """Keyword arguments that complete `make`, for a run of so many steps."""
        return {**self.example, **(self.scaled(steps) if self.scaled else {})}

    @property
    def link(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url

    @property
    def bibtex(self) -> str:
        name = "".join(filter(str.isalpha, self.authors[0].split(",")[0])).lower()
        words = ["".join(filter(str.isalnum, word)).lower() for word in self.title.split()]
        word = next(word for word in words if word not in ("a", "an", "the", "on", "toward", "towards"))
        kind = "article" if self.arxiv else "misc"
        source = f"eprint = {{{self.arxiv}}},\n  archivePrefix = {{arXiv}}" if self.arxiv else f"url = {{{self.url}}}"
        return (
            f"@{kind}{{{name}{self.year}{word},\n  title = {{{self.title}}},\n"
            f"  author = {{{' and '.join(self.authors)}}},\n  year = {{{self.year}}},\n  {source}\n}}"
        )


def register(paper: Paper) -> Paper:
    """Enters a method; its name must be new."""
    if paper.name in _PAPERS:
        raise ValueError(f"register: {paper.name!r} is registered already")
    _PAPERS[paper.name] = paper
    return paper


def papers() -> Mapping[str, Paper]:
    """All registered methods by name, the zoo's own first."""
    return MappingProxyType(dict(sorted(_PAPERS.items(), key=lambda kv: (kv[1].library != "optax_zoo", kv[0]))))


def find(pattern: str = "*") -> list[str]:
    """Names of the methods that match a shell pattern, e.g. `find("ada*")`."""
    return [name for name in papers() if fnmatch.fnmatchcase(name, pattern)]


def create(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Builds a method by name: `create("ademamix", learning_rate=1e-3, b3=0.999)`.

    Raises:
      ValueError: no such method; the sentence names the closest ones.
    """
    return paper(name, "create").make(*args, **kwargs)


def paper(name: str, asker: str = "paper") -> Paper:
    """The record of one method."""
    if name not in _PAPERS:
        raise ValueError(f"{asker}({name!r}): no such method{suggestion(name, _PAPERS) or '; see find()'}")
    return _PAPERS[name]


def in_use(opt_state: PyTree) -> list[tuple[Paper, ...]]:
    """The methods whose states occur in an optimizer state, outermost first; those that share a state together."""
    owners: dict[type, tuple[Paper, ...]] = {}
    for entry in papers().values():
        for state in entry.states:
            owners[state] = (*owners.get(state, ()), entry)
    found: dict[type, tuple[Paper, ...]] = {}

    def visit(node: Any) -> bool:
        if type(node) in owners:
            found.setdefault(type(node), owners[type(node)])
        return False

    jax.tree.leaves(opt_state, is_leaf=visit)
    return list(found.values())


def cite(method: Any) -> str:
    """BibTeX of a method by name, or of every method in use in an optimizer state.

    Args:
      method: a registered name, or an optimizer state.

    Returns:
      BibTeX entries separated by blank lines; one entry per paper.
    """
    groups = [(paper(method, "cite"),)] if isinstance(method, str) else in_use(method)
    return "\n\n".join(dict.fromkeys(entry.bibtex for group in groups for entry in group))


def markdown_table() -> str:
    """The table of all methods for the README."""
    rows = ["| method | kind | paper | needs | floats/parameter | code |", "|---|---|---|---|--:|---|"]
    for entry in papers().values():
        needs = ", ".join(entry.needs) or "-"
        title = f"[{entry.title}]({entry.link}), {entry.year}"
        size = f"{entry.floats_per_parameter:g}" if entry.trains else "-"
        rows.append(f"| `{entry.name}` | {entry.kind} | {title} | {needs} | {size} | {entry.library} |")
    return "\n".join(rows)
