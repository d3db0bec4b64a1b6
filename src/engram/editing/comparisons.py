"""What a check is made of: the model's answers to one prompt, before and after, and whether that is as wished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engram.editing.answers import Answer
from engram.editing.making import Kind
from engram.editing.records import FactRecord
from engram.facts import Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The model's answers to one prompt, before and after.

    Args:
        kind: the edited prompt, a paraphrase of it, the same behind other text, a neighbor, another fact of the same
            subject, or an unrelated fact.
        text: the prompt as the model saw it, chat template included.
        target: the new answer of the fact that was edited, whose probability is given with both answers.
        original: the old answer; for neighbors and other facts what the model said before.
        before: the unedited model's answer.
        after: the edited model's.
        ok: whether that is as wished: the target for the prompt and its paraphrases; a neighbor has not moved to the
            target; other answers are the same.
        shown: the prompt in plain words.
        subject: what it asks about, where that is known.
    """

    kind: Kind
    text: str
    target: str | None
    original: str | None
    before: Answer
    after: Answer
    ok: bool
    shown: str = ""
    subject: str = ""

    @property
    def gain(self) -> float | None:
        """By how many nats per token the new answer has gained on the old one; `None` where one of them is missing.

        For a neighbor the old one is what the edit replaces, as in CounterFact's NS; the neighbor's own answer, of
        which the model is often sure, hides a gain that tips others over.
        """
        before, after = self.before.over_replaced, self.after.over_replaced
        if before is None or after is None:
            before, after = self.before.lead, self.after.lead
        return None if before is None or after is None else after - before

    def row(self) -> dict[str, object]:
        """Return the comparison as one row of a table."""
        row: dict[str, object] = {"kind": self.kind, "prompt": self.shown or self.text, "subject": self.subject}
        for when, answer in (("before", self.before), ("after", self.after)):
            row |= {f"says {when}": answer.says, f"p {when}": answer.probability, f"target {when}": answer.target}
            row |= {f"lead {when}": answer.lead}
        return {**row, "ok": self.ok}


@dataclass(frozen=True, slots=True)
class FreeText:
    """A text that the model writes from an opening, before and after."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FactCheck:
    """Everything that was asked about one fact."""

    fact: Fact
    mode: str
    answers: tuple[Comparison, ...]
    texts: tuple[FreeText, ...]


def reached(record: FactRecord, gives: Callable[[str], bool]) -> bool:
    """Say whether an answer is what a record wanted; `gives` tells whether the model gives a phrase."""
    if record.mode == "erase":
        return not (record.fact.original and gives(record.fact.original))
    return bool(record.fact.target) and gives(record.fact.target or "")


def as_wished(kind: Kind, record: FactRecord, original: str | None, before: Answer, after: Answer) -> bool:
    """Say whether the answers to a prompt are as an edit should leave them."""
    match kind:
        case "prompt":
            return reached(record, after.gives)
        case "paraphrase" | "context":
            return reached(record, after.gives) or (record.mode != "erase" and leads(after))
        case "neighbor" if record.mode != "erase":
            return not moved(record.fact.target or "", before, after)
        case _:
            return after.says == before.says or bool(original and after.gives(original))


def moved(target: str, before: Answer, after: Answer) -> bool:
    """Say whether a neighbor went over to the new answer: it beats the old one, or is what the model says now."""
    return (leads(after) and not leads(before)) or (after.gives(target) and not before.gives(target))


def leads(answer: Answer) -> bool:
    """Say whether the new answer is likelier than the old one."""
    return answer.lead is not None and answer.lead > 0


def worst_first(answers: Sequence[Comparison]) -> list[Comparison]:
    """Sort answers by how far they are from what was wished.

    Neighbors and other facts: those that went over to the new answer first, the surest of them first; then what the
    new answer gained on. The prompt and its paraphrases: where the new answer is farthest behind.
    """

    def badness(answer: Comparison) -> tuple[bool, bool, float]:
        if answer.kind in ("prompt", "paraphrase", "context"):
            return not answer.ok, False, -(answer.after.lead or 0.0)
        over = answer.target is not None and answer.after.gives(answer.target)
        return not answer.ok, over, answer.before.probability if over else (answer.gain or 0.0)

    return sorted(answers, key=badness, reverse=True)
