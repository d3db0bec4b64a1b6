"""`check`: what an edit did to the prompt, its paraphrases, its neighbors and other facts, and whether that is ok.

A `Check` is a value: it draws itself as text and as plain values for JSON.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from engram.editing.answers import Answer, said
from engram.editing.applying import require_fit
from engram.editing.asking import Item, asked_after, asked_before, items_of, wrap_of
from engram.editing.comparisons import Comparison, FactCheck, FreeText, worst_first
from engram.editing.drawing import fact_text
from engram.editing.edit import Edit
from engram.editing.fluency import Fluency, Health, Reading, written
from engram.editing.probes import cases_for, one_per_fact
from engram.editing.thresholds import Thresholds
from engram.editing.verdict import Verdict, verdict_on
from engram.errors import NumericalError
from engram.facts import Case
from engram.given import require, require_each
from engram.models.chat import Wrap
from engram.progress import AnyProgress, Doing, Progress, progress_for
from engram.showing import Shown, frame, html_table

if TYPE_CHECKING:
    from pandas import DataFrame

    from engram.models import LM

CHECKING = Doing("checking", unit="parts")
_PARTS = 5


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Check(Shown):
    """What an edit did.

    Args:
        model: the model's name.
        facts: one entry per edited fact.
        health: how fluent the edited model is; `None` when that was not measured.
        thresholds: what the verdict is by.
    """

    model: str
    facts: tuple[FactCheck, ...]
    health: Health | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def verdict(self) -> Verdict:
        """The verdict on everything that was asked, part by part."""
        return verdict_on(self.facts, self.health, self.thresholds)

    @property
    def ok(self) -> bool:
        """Whether everything that was asked is within its threshold."""
        return self.verdict.ok

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for everything that is not ok."""
        parts = (f"{reason[0].upper()}{reason[1:]}." for reason in self.verdict.reasons)
        return (*parts, *(() if self.health is None else self.health.warnings))

    def shares(self) -> dict[str, tuple[int, int]]:
        """Return for each kind of prompt how many are as wished, and how many there are."""
        return {part.kind: (part.good, part.of) for part in self.verdict.parts}

    def text(self, width: int = 110, *, every: bool = False) -> str:
        """Draw the check as text.

        Args:
            width: characters per line.
            every: show all prompts instead of the worst few of each kind.
        """
        parts = [fact_text(fact, width=width, every=every) for fact in self.facts]
        if len(self.facts) > 1:
            counts = ", ".join(f"{kind} {good}/{of}" for kind, (good, of) in self.shares().items())
            parts.append(f"{len(self.facts)} facts together: {counts}")
        verdict = self.verdict.text()
        parts.append(verdict if self.health is None else f"{self.health.text()}\n{verdict}")
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return self.text()

    def _lines(self) -> Iterator[str]:
        yield f"Check of {self.model}: {self.verdict.text().removeprefix('verdict: ')}"
        yield from (f"  {part.text()}" for part in self.verdict.parts)
        yield from ([] if self.health is None else [f"  {self.health.text()}"])
        yield "  print() shows answers, .dataframe() has every number"

    def _inside(self) -> Iterator[str]:
        rows = [[part.text(), "ok" if part.ok else "NOT OK"] for part in self.verdict.parts]
        yield html_table(["what was asked", "verdict"], rows, left=2)
        wrong = [c for fact in self.facts for c in fact.answers if not c.ok]
        cells = [[c.kind, c.shown or c.text, said(c.before), said(c.after)] for c in worst_first(wrong)]
        yield html_table(["not as wished", "prompt", "before", "after"], cells, left=4) if cells else ""

    def dataframe(self) -> "DataFrame":
        """Return one row per prompt: what it is for, the answers and their probabilities before and after.

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(c.row() for fact in self.facts for c in fact.answers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "model": self.model,
            "ok": self.ok,
            "verdict": self.verdict.to_dict(),
            "shares": {kind: {"ok": good, "of": every} for kind, (good, every) in self.shares().items()},
            "facts": [asdict(fact) for fact in self.facts],
            "health": None if self.health is None else self.health.to_dict(),
            "thresholds": asdict(self.thresholds),
        }


def check(
    lm: "LM",
    edit: Edit,
    *,
    paraphrases: Sequence[str] = (),
    neighborhood: Sequence[str] = (),
    generation: Sequence[str] = (),
    cases: Sequence[Case] | None = None,
    thresholds: Thresholds | None = None,
    health: bool = True,
    made: bool = True,
    texts: bool = True,
    chat: bool | None = None,
    held_out: Sequence[str] | None = None,
    max_new_tokens: int = 30,
    seed: int = 0,
    progress: AnyProgress | None = None,
) -> Check:
    """Ask the model with and without an edit; it is the same afterwards.

    What is not given is made: neighbors from well-known things that the model takes for something similar, other and
    unrelated facts from what it says with confidence, paraphrases by putting texts of its own in front.

    Args:
        lm: the model, without the edit.
        edit: the edit.
        paraphrases: other prompts for the facts, subject filled in. `mini` knows its own, as of the next two.
        neighborhood: prompts about other subjects, whose answers are to stay.
        generation: openings for free text; the prompt and the subject otherwise.
        cases: instead of all these, one case per fact of the edit.
        thresholds: when the verdict is ok.
        health: also measure how fluent the edited model is.
        made: make prompts of those kinds of which none are given, for the first three facts.
        texts: also write free texts.
        chat: put the chat template around every prompt; as the edit was made when not given.
        held_out: texts for the fluency; see `engram.guard`.
        max_new_tokens: length of free texts.
        seed: for free texts and whatever is made.
        progress: told what is being done, how much is done, and of how much; the log when not given.

    Raises:
        EditMismatch: the edit was made for another model.
        FactError: there are more or fewer cases than facts in the edit.
        PromptTooLong: a prompt does not fit into the model's positions.
        TokenizerError: `chat` is set, and the tokenizer has no chat template.
    """
    require(edit, Edit, "edit")
    require_fit(lm, edit)
    given = {"paraphrases": paraphrases, "neighborhood": neighborhood, "generation": generation}
    cases = _cases(lm, edit, given) if cases is None else one_per_fact(require_each(cases, Case, "cases"), edit.facts)
    how = _How(thresholds or Thresholds(), health, made, texts, chat, held_out, max_new_tokens, seed)
    return _checked(lm, edit, cases, how, progress_for(progress))


@dataclass(frozen=True, slots=True)
class _How:
    """What is looked at; see `check`."""

    thresholds: Thresholds
    health: bool
    made: bool
    texts: bool
    chat: bool | None
    held_out: Sequence[str] | None
    max_new_tokens: int
    seed: int


def _checked(lm: "LM", edit: Edit, cases: Sequence[Case], how: _How, say: Progress) -> Check:
    wrap = wrap_of(lm, edit.records[0], chat=how.chat) if edit.records else Wrap()
    openings = [wrap.around(text) for case in cases for text in case.generation] if how.texts else []
    fluency = Fluency.of(lm, edit, held_out=how.held_out, wrap=wrap, seed=how.seed) if how.health else None
    pen = _Pen(fluency, openings, how.max_new_tokens, how.seed)
    say(CHECKING, 0, _PARTS)
    items = items_of(lm, edit, cases, chat=how.chat, made=how.made, seed=how.seed)
    say(CHECKING, 1, _PARTS)
    seen = _both(lm, edit, items, pen, say)
    missed = [c.shown for c in seen.compared if c.kind == "prompt" and not c.ok]
    return Check(
        model=lm.name,
        facts=_by_fact(edit, cases, seen, pen.free(seen.before, seen.after)),
        health=fluency and fluency.health(lm, edit, seen.before, seen.after, how.thresholds, missed),
        thresholds=how.thresholds,
    )


def _cases(lm: "LM", edit: Edit, texts: Mapping[str, Sequence[str]]) -> Sequence[Case]:
    for name, given in texts.items():
        require_each(given, str, name)
    return cases_for(lm, edit.facts, **texts)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Everything that was asked, compared, and what was written before and after."""

    items: Sequence[Item]
    compared: Sequence[Comparison]
    before: Reading
    after: Reading | None


def _both(lm: "LM", edit: Edit, items: Sequence[Item], pen: "_Pen", say: Progress) -> _Seen:
    """Ask and let write without the edit, then under it."""
    items, before = asked_before(lm, items)
    say(CHECKING, 2, _PARTS)
    first = pen.write(lm)
    say(CHECKING, 3, _PARTS)
    try:
        with edit.applied(lm):
            after = asked_after(lm, items)
            say(CHECKING, 4, _PARTS)
            second = pen.write(lm, edited=True)
    except NumericalError:  # an edit that breaks the arithmetic is not ok: that is what was asked
        after, second = [Answer(says="", probability=0.0)] * len(items), None
    say(CHECKING, _PARTS, _PARTS)
    compared = [item.compared(b, a) for item, b, a in zip(items, before, after, strict=True)]
    return _Seen(items, compared, first, second)


@dataclass(frozen=True, slots=True)
class _Pen:
    """What the model writes, once for its fluency and for the free texts.

    Args:
        fluency: what is looked at for fluency, where it is.
        openings: of free texts.
        max_new_tokens: their length.
        seed: for sampling.
    """

    fluency: Fluency | None
    openings: Sequence[str]
    max_new_tokens: int
    seed: int

    def write(self, lm: "LM", *, edited: bool = False) -> Reading:
        """Write everything with the model as it is now."""
        if self.fluency is not None:
            return self.fluency.read(lm, self.openings, max_new_tokens=self.max_new_tokens, edited=edited)
        limits = [self.max_new_tokens] * len(self.openings)
        return Reading(math.nan, written(lm, self.openings, limits, self.seed))

    def free(self, before: Reading, after: Reading | None) -> Iterator[FreeText]:
        """Yield the free texts; nothing was written where the output was not finite."""
        count = len(self.openings)
        old = before.texts[len(before.texts) - count :]
        new = old if after is None else after.texts[len(after.texts) - count :]
        for opening, one, other in zip(self.openings, old, new, strict=True):
            yield FreeText(opening, one, opening if after is None else other)


def _by_fact(edit: Edit, cases: Sequence[Case], seen: _Seen, texts: Iterator[FreeText]) -> tuple[FactCheck, ...]:
    """Sort comparisons and free texts by the facts that they belong to."""
    return tuple(
        FactCheck(
            fact=case.fact,
            mode=record.mode,
            answers=tuple(c for item, c in zip(seen.items, seen.compared, strict=True) if item.fact == index),
            texts=tuple(islice(texts, len(case.generation))),
        )
        for index, (record, case) in enumerate(zip(edit.records, cases, strict=True))
    )


def answers(lm: "LM", edit: Edit) -> list[Comparison]:
    """Return only what the model says after the edited prompts, before and after: the short form of `check`.

    Raises:
        EditMismatch: the edit was made for another model.
    """
    cases = [Case(id="", fact=fact) for fact in edit.facts]
    items, before = asked_before(lm, items_of(lm, edit, cases, made=False))
    with edit.applied(lm):
        after = asked_after(lm, items)
    return [item.compared(b, a) for item, b, a in zip(items, before, after, strict=True)]
