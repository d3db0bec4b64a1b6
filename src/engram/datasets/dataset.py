"""`Dataset`: cases that are read when asked for, and what was left out on the way."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from engram.errors import DataError, SettingError
from engram.facts import Case
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

_KNOWN_BATCH = 64

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that gave no case.

    Args:
        id: the record's name.
        where: file, line and record.
        reason: why it was left out.
    """

    id: str
    where: str
    reason: str


class SelectionOptions(TypedDict, total=False):
    """The keyword options that all readers share; see `Selection`."""

    limit: int | None
    sample: int | None
    seed: int
    skip_unknown: "LM | None"
    chat: bool
    skip: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Selection(Shown):
    """Which cases of a data set are wanted.

    Args:
        limit: the first so many.
        sample: so many drawn at random, in the file's order.
        seed: for the draw.
        skip_unknown: a model; cases whose original answer is not its most probable next token are left out first.
        chat: ask it within its chat template.
        skip: leave out the first so many (of those that are known), as those that a method was tuned on.

    Raises:
        SettingError: both `limit` and `sample`, or a number below 1.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    skip_unknown: "LM | None" = None
    chat: bool = False
    skip: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.sample is not None:
            raise SettingError("Give either limit=... (the first ones) or sample=... (random ones), not both.")
        for name in ("limit", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name}={value}; it must be 1 or more.")
        if self.skip < 0:
            raise SettingError(f"skip={self.skip}; it must be 0 or more.")

    def describe(self) -> dict[str, Any]:
        """Return the choice as plain values, for a run's settings."""
        known = self.skip_unknown.fingerprint if self.skip_unknown is not None else None
        plain = {"limit": self.limit, "sample": self.sample, "seed": self.seed, "known_to": known}
        return plain | ({"chat": True} if self.chat and known else {}) | ({"skip": self.skip} if self.skip else {})


@dataclass(slots=True, repr=False)
class Dataset(Shown):
    """Cases in their file's order. Iterating reads the file again; nothing is kept but what was skipped.

    Args:
        name: what to call it in tables.
        protocol: whose columns a report shows first: "counterfact" or "zsre".
        digest: identity of the content.
        read: yields a `Case`, or a `Skipped` for a record that gives none.
        selection: which of the cases are wanted.
    """

    name: str
    protocol: str
    digest: str
    read: Callable[[], Iterable[Case | Skipped]]
    selection: Selection = field(default_factory=Selection)
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """What the last iteration left out."""
    _said: bool = field(default=False, init=False, repr=False)

    def __iter__(self) -> Iterator[Case]:
        """Read the cases that are wanted.

        Raises:
            DataError: the file is broken as a whole, or none of its records gives a case; the line is named.
        """
        self.skipped = []
        cases = self._all()
        if self.selection.skip_unknown is not None:
            cases = self._known(cases, self.selection.skip_unknown)
        cases = islice(cases, self.selection.skip, None)
        if self.selection.sample is not None:
            return iter(_reservoir(cases, self.selection.sample, self.selection.seed))
        return islice(cases, self.selection.limit)

    def count(self) -> int:
        """Return the number of cases (reads the file)."""
        return sum(1 for _ in self)

    def select(self, **changes: Any) -> "Dataset":
        """Return the same data with another selection: limit, sample, seed, skip_unknown, chat, skip."""
        return Dataset(self.name, self.protocol, self.digest, self.read, Selection(**changes))

    def everything(self) -> "Dataset":
        """Return the same data without a selection."""
        return self.select()

    def describe(self) -> dict[str, Any]:
        """Return name, content and selection as plain values, for a run's settings."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "digest": self.digest,
            "selection": self.selection.describe(),
        }

    def _all(self) -> Iterator[Case]:
        seen: set[str] = set()
        for item in self.read():
            if isinstance(item, Skipped):
                self.skipped.append(item)
            elif item.id in seen:
                self.skipped.append(Skipped(item.id, self.name, f"an earlier record has the id {item.id!r}, too"))
            else:
                seen.add(item.id)
                yield item
        if not self.skipped:
            return
        many, first = len(self.skipped), self.skipped[0]
        if not seen:
            raise DataError(f"{self.name}: none of {many} record(s) can be used. {first.where}: {first.reason}")
        if not self._said:
            logger.warning("%s: %d record(s) left out; the first: %s: %s", self.name, many, first.where, first.reason)
            self._said = True

    def _known(self, cases: Iterator[Case], lm: "LM") -> Iterator[Case]:
        for group in groups(cases, _KNOWN_BATCH):
            for case, known in zip(group, _knows(lm, group, chat=self.selection.chat), strict=True):
                if known:
                    yield case
                else:
                    self.skipped.append(Skipped(case.id, self.name, f"{lm.name} does not know it"))


def groups(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Yield the items in tuples of `size`, the last one possibly shorter."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def _reservoir(cases: Iterator[Case], count: int, seed: int) -> list[Case]:
    """Draw `count` cases, each equally likely, in one pass and in their order."""
    generator = random.Random(seed)
    kept: list[tuple[int, Case]] = []
    for index, case in enumerate(cases):
        if len(kept) < count:
            kept.append((index, case))
        elif (place := generator.randrange(index + 1)) < count:
            kept[place] = (index, case)
    return [case for _, case in sorted(kept, key=lambda item: item[0])]


def _knows(lm: "LM", cases: tuple[Case, ...], *, chat: bool) -> list[bool]:
    """Say for each case whether the first token of its original answer is the most probable next one."""
    import torch

    from engram.models.chat import wrap_for
    from engram.models.continuations import asked
    from engram.models.encoding import left_padded

    known = [False] * len(cases)
    named = [i for i, case in enumerate(cases) if case.fact.original]
    if not named:
        return known
    wrap = wrap_for(lm, chat=chat)
    prompts = [asked(lm, wrap.fact(cases[i].fact)) for i in named]
    ids, mask = left_padded([prompt.ids[0].tolist() for prompt in prompts])
    with torch.no_grad():
        best = lm.forward(ids, mask=mask, keep=1)[:, -1].argmax(-1).tolist()
    for i, prompt, token in zip(named, prompts, best, strict=True):
        known[i] = prompt.answer == token
    return known
