"""What a check asks about every fact of an edit, and the answers with and without it.

Before the edit the model speaks freely: its own answers are what neighbors and other facts are held against afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engram.editing.answers import Answer, Question, answered, speak, weigh
from engram.editing.comparisons import Comparison, as_wished
from engram.editing.edit import Edit
from engram.editing.making import Probe, contexts, made_probes, probes_of
from engram.editing.records import FactRecord
from engram.facts import Case
from engram.models.chat import Wrap, wrap_for

if TYPE_CHECKING:
    from engram.models import LM

_IN_DEPTH = 3
"""So many facts of an edit get prompts made for them; the others are asked what is known."""

_FREE = ("prompt", "paraphrase")
"""Kinds of prompts after which the model speaks freely in any case."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt for one fact.

    Args:
        fact: the fact's index in the edit.
        record: what was done for it.
        probe: the prompt in plain words.
        question: the prompt as the model sees it, with the answers that are weighed.
    """

    fact: int
    record: FactRecord
    probe: Probe
    question: Question

    def knowing(self, own: str, first: str) -> "Item":
        """Return the same with the answers that it is held against, where they are not known.

        Args:
            own: what the unedited model says here.
            first: what it says after the edited prompt, or is known to be true there.
        """
        again = self.probe.kind in ("prompt", "paraphrase", "context")
        original = self.question.original or (first if again else own) or None
        replaced = first or None if self.probe.kind == "neighbor" else None
        return replace(self, question=replace(self.question, original=original, replaced=replaced))

    def compared(self, before: Answer, after: Answer) -> Comparison:
        """Put two answers beside each other."""
        kind, original = self.probe.kind, self.question.original
        return Comparison(
            kind=kind,
            text=self.question.text,
            target=self.question.target,
            original=original,
            before=before,
            after=after,
            ok=as_wished(kind, self.record, original, before, after),
            shown=self.probe.text,
            subject=self.probe.subject,
        )


def wrap_of(lm: "LM", record: FactRecord, *, chat: bool | None = None) -> Wrap:
    """Return what stands around a fact's prompt: as the method saw it, or the chat template if it is asked for.

    Raises:
        TokenizerError: `chat` is set, and the tokenizer has no chat template.
    """
    if chat is not None:
        return wrap_for(lm, chat=chat)
    before, *after = record.text.split(record.fact.text)
    return Wrap(before, after[0]) if len(after) == 1 else Wrap()


def items_of(
    lm: "LM", edit: Edit, cases: Sequence[Case], *, chat: bool | None = None, made: bool = True, seed: int = 0
) -> list[Item]:
    """Return everything to ask, fact by fact; the edited prompt comes first.

    Args:
        lm: the model, without the edit.
        edit: the edit.
        cases: what is known, one case per fact.
        chat: see `check`.
        made: make prompts of the kinds that a case has none of.
        seed: for these.
    """
    items: list[Item] = []
    spoken = contexts(lm, seed=seed) if made else ()
    for index, (record, case) in enumerate(zip(edit.records, cases, strict=True)):
        fact, wrap = replace(record.fact, original=case.fact.original), wrap_of(lm, record, chat=chat)
        probes = [Probe("prompt", fact.text, fact.subject, fact.original), *probes_of(case)]
        if made and index < _IN_DEPTH:
            probes += [Probe("context", c.replace("{}", fact.text), fact.subject, fact.original) for c in spoken]
            probes += made_probes(lm, replace(case, fact=fact), wrap, seed=seed)
        target = None if record.mode == "erase" else fact.target
        items += [
            Item(index, record, p, Question(text=wrap.around(p.text), target=target, original=p.original))
            for p in probes
        ]
    return items


def asked_before(lm: "LM", items: Sequence[Item]) -> tuple[list[Item], list[Answer]]:
    """Ask the unedited model, and return the items with their old answers: what it says where none was known."""
    said = speak(lm, [item.question for item in items])
    first = {
        item.fact: item.question.original or own.says
        for item, own in zip(items, said, strict=True)
        if item.probe.kind == "prompt"
    }
    known = [item.knowing(own.says, first[item.fact]) for item, own in zip(items, said, strict=True)]
    return known, answered(lm, [item.question for item in known], said)


def asked_after(lm: "LM", items: Sequence[Item]) -> list[Answer]:
    """Ask the edited model."""
    freely = [i for i, item in enumerate(items) if item.probe.kind in _FREE]
    return weigh(lm, [item.question for item in items], freely)
