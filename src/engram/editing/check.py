"""`check`: what an edit did to the prompt, its paraphrases, its neighbors and the subject's other facts.

A `Check` is a value: it draws itself as text and as plain values for JSON.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from engram.editing.answers import BATCH, Answer, Question, ask
from engram.editing.applying import require_fit
from engram.editing.edit import Edit, FactRecord
from engram.editing.guard import Health, Thresholds, guard, reached
from engram.editing.probes import cases_for, one_per_fact
from engram.facts import Case, Fact
from engram.given import require_each
from engram.models.generation import Generation, generate_batch
from engram.progress import AnyProgress, Doing, progress_for

if TYPE_CHECKING:
    from engram.models import LM

Kind = Literal["prompt", "paraphrase", "neighbor", "other fact"]
_HEADINGS: dict[Kind, tuple[str, str]] = {
    "prompt": ("the prompt", "done"),
    "paraphrase": ("paraphrases", "follow"),
    "neighbor": ("neighbors", "unchanged"),
    "other fact": ("other facts of the subject", "unchanged"),
}
_YES, _NO, _CUT = "✓", "✗", "…"
CHECKING = Doing("checking", unit="parts")
_LEAK = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The model's answers to one prompt, before and after.

    Args:
        kind: the edited prompt, a paraphrase of it, a neighbor, or another fact of the same subject.
        text: the prompt.
        target: the new answer of the fact that was edited, whose probability is given with both answers.
        original: the old answer, where known.
        before: the unedited model's answer.
        after: the edited model's.
        ok: whether that is as wished: the target for prompt and paraphrases, the same answer for the others.
    """

    kind: Kind
    text: str
    target: str | None
    original: str | None
    before: Answer
    after: Answer
    ok: bool


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What an edit did.

    Args:
        model: the model's name.
        facts: one entry per edited fact.
        health: the guard's verdict; `None` when it was not asked.
    """

    model: str
    facts: tuple[FactCheck, ...]
    health: Health | None = None

    @property
    def ok(self) -> bool:
        """Whether every edited prompt has its new answer and the guard has no warning."""
        done = all(c.ok for fact in self.facts for c in fact.answers if c.kind == "prompt")
        return done and (self.health is None or self.health.ok)

    def shares(self) -> dict[str, tuple[int, int]]:
        """Return for each kind of prompt how many are as wished, and how many there are."""
        counts: dict[str, tuple[int, int]] = {}
        for answer in (a for fact in self.facts for a in fact.answers):
            good, every = counts.get(answer.kind, (0, 0))
            counts[answer.kind] = good + answer.ok, every + 1
        return counts

    def text(self, width: int = 110) -> str:
        """Draw the check as text.

        Args:
            width: characters per line.
        """
        parts = [_fact_text(fact, width) for fact in self.facts]
        if len(self.facts) > 1:
            counts = ", ".join(f"{kind} {good}/{every}" for kind, (good, every) in self.shares().items())
            parts.append(f"{len(self.facts)} facts together: {counts}")
        if self.health is not None:
            parts.append(self.health.text())
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return self.text()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "model": self.model,
            "ok": self.ok,
            "shares": {kind: {"ok": good, "of": every} for kind, (good, every) in self.shares().items()},
            "facts": [asdict(fact) for fact in self.facts],
            "health": None if self.health is None else self.health.to_dict(),
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
    max_new_tokens: int = 30,
    seed: int = 0,
    progress: AnyProgress | None = None,
) -> Check:
    """Ask the model with and without an edit; it is the same afterwards.

    Args:
        lm: the model, without the edit.
        edit: the edit.
        paraphrases: other prompts for the facts, subject filled in. `mini` knows its own, as of the next two.
        neighborhood: prompts about other subjects, whose answers are to stay.
        generation: openings for free text; the prompt and the subject otherwise.
        cases: instead of all these, one case per fact of the edit.
        thresholds: the health guard's.
        health: also run the guard.
        max_new_tokens: length of free texts.
        seed: for free texts and the guard.
        progress: told what is being done, how much is done, and of how much; the log when not given.

    Raises:
        EditMismatch: the edit was made for another model.
        FactError: there are more or fewer cases than facts in the edit.
        PromptTooLong: a prompt does not fit into the model's positions.
    """
    require_fit(lm, edit)
    texts = {"paraphrases": paraphrases, "neighborhood": neighborhood, "generation": generation}
    cases = _cases(lm, edit, texts) if cases is None else one_per_fact(require_each(cases, Case, "cases"), edit.facts)
    asked = [_questions(record, case) for record, case in zip(edit.records, cases, strict=True)]
    questions = [question for group in asked for _, question in group]
    openings = [text for case in cases for text in case.generation]
    how, say = Generation(max_new_tokens=max_new_tokens, top_k=5, seed=seed), progress_for(progress)
    say(CHECKING, 0, 3)
    before, texts_before = ask(lm, questions), _written(lm, openings, how)
    say(CHECKING, 1, 3)
    with edit.applied(lm):
        after, texts_after = ask(lm, questions), _written(lm, openings, how)
    say(CHECKING, 2, 3)
    verdict = guard(lm, edit, thresholds=thresholds, seed=seed) if health else None
    said = zip(before, after, strict=True)
    written = map(FreeText, openings, texts_before, texts_after)
    facts = tuple(
        FactCheck(
            fact=case.fact,
            mode=record.mode,
            answers=tuple(_compared(kind, q, record, *next(said)) for kind, q in group),
            texts=tuple(islice(written, len(case.generation))),
        )
        for record, case, group in zip(edit.records, cases, asked, strict=True)
    )
    return Check(model=lm.name, facts=facts, health=verdict)


def _cases(lm: "LM", edit: Edit, texts: Mapping[str, Sequence[str]]) -> Sequence[Case]:
    for name, given in texts.items():
        require_each(given, str, name)
    return cases_for(lm, edit.facts, **texts)


def _written(lm: "LM", openings: Sequence[str], how: Generation) -> list[str]:
    """Continue all openings, some at a time."""
    batches = [list(openings[i : i + BATCH]) for i in range(0, len(openings), BATCH)]
    return [text for batch in batches for text in generate_batch(lm, batch, how)]


def answers(lm: "LM", edit: Edit) -> list[Comparison]:
    """Return only what the model says after the edited prompts, before and after: the short form of `check`.

    Raises:
        EditMismatch: the edit was made for another model.
    """
    asked = [_questions(record, Case(id="", fact=record.fact))[0] for record in edit.records]
    questions = [question for _, question in asked]
    before = ask(lm, questions)
    with edit.applied(lm):
        after = ask(lm, questions)
    return [
        _compared(kind, question, record, b, a)
        for (kind, question), record, b, a in zip(asked, edit.records, before, after, strict=True)
    ]


def _questions(record: FactRecord, case: Case) -> list[tuple[Kind, Question]]:
    """List what to ask about a fact. The edited prompt is asked as the method saw it (chat template included)."""
    target, original = None if record.mode == "erase" else record.fact.target, case.fact.original
    wrap = record.text.replace(record.fact.text, "{}") if record.text.count(record.fact.text) == 1 else "{}"
    asked: list[tuple[Kind, Question]] = []

    def add(kind: Kind, text: str, known: str | None) -> None:
        asked.append((kind, Question(text=wrap.replace("{}", text), target=target, original=known)))

    add("prompt", record.fact.text, original)
    for text in case.paraphrases:
        add("paraphrase", text, original)
    for text in case.neighborhood:
        add("neighbor", text, original)
    for fact in case.kept:
        add("other fact", fact.text, fact.original)
    return asked


def _compared(kind: Kind, question: Question, record: FactRecord, before: Answer, after: Answer) -> Comparison:
    if kind in ("prompt", "paraphrase"):
        ok = reached(record, after.gives)
    else:
        ok = after.says == before.says or bool(question.original and after.gives(question.original))
    return Comparison(
        kind=kind,
        text=question.text,
        target=question.target,
        original=question.original,
        before=before,
        after=after,
        ok=ok,
    )


# Drawing


def _fact_text(fact: FactCheck, width: int) -> str:
    wanted = "what it would say without knowing the subject" if fact.mode == "erase" else fact.fact.target
    lines = [f"{fact.fact.text} -> {wanted}"]
    drawing = dict(zip(fact.answers, drawn(fact.answers, width=width), strict=True))
    for kind, (heading, word) in _HEADINGS.items():
        group = [c for c in fact.answers if c.kind == kind]
        if not group:
            continue
        if kind != "prompt":
            lines.append(f"  {heading}: {sum(c.ok for c in group)} of {len(group)} {word}")
        lines.extend(drawing[c] for c in group)
    for text in fact.texts:
        lines.append(f"  free text: {text.prompt}")
        for label, whole in (("before", text.before), ("after", text.after)):
            tail = " ".join(whole[len(text.prompt) :].split())
            lines.append(f"    {label:7}{textwrap.shorten(tail, max(20, width - 12), placeholder=_CUT) or '(nothing)'}")
    return "\n".join(lines)


def drawn(comparisons: Sequence[Comparison], *, width: int = 110) -> list[str]:
    """Draw comparisons as lines with aligned columns: mark, prompt, answer before -> answer after.

    Args:
        comparisons: what to draw.
        width: characters per line; longer prompts are cut at their beginning.
    """
    side = max((len(_said(c.before)) for c in comparisons), default=0)
    tail = max((len(_said(c.after) + _shift(c)) for c in comparisons), default=0)
    room = max(24, min(max((len(c.text) for c in comparisons), default=0), width - side - tail - 12))
    lines: list[str] = []
    for c in comparisons:
        text = c.text.replace("\n", " ")
        text = text if len(text) <= room else _CUT + text[1 - room :]
        mark = _YES if c.ok else _NO
        lines.append(f"    {mark} {text:{room}}  {_said(c.before):{side}} -> {_said(c.after)}{_shift(c)}")
    return lines


def _shift(comparison: Comparison) -> str:
    """Return the target's probability where the answers alone do not tell it: it is not given, or it leaks."""
    before, after = comparison.before.target, comparison.after.target
    if comparison.target is None or before is None or after is None or comparison.after.gives(comparison.target):
        return ""
    wanted = comparison.kind in ("prompt", "paraphrase")
    leaks = comparison.kind == "neighbor" and after > before + _LEAK
    return f"  ({comparison.target} {percent(before)} -> {percent(after)})" if wanted or leaks else ""


def _said(answer: Answer) -> str:
    return f"{answer.says} {percent(answer.probability)}" if answer.says else "(end of text)"


def percent(share: float) -> str:
    """Return a probability as people read it: two digits, and no false zero.

    >>> percent(0.97), percent(0.0321), percent(0.0)
    ('97 %', '3.2 %', '0 %')
    """
    value = 100 * share
    if value == 0 or value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.05 else "<0.1 %"
