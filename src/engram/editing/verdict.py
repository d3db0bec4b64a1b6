"""One verdict on everything that a check asked: a share and a threshold for each kind of prompt, and fluency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engram.editing.answers import percent, said
from engram.editing.comparisons import Comparison, FactCheck, worst_first
from engram.editing.drawing import NAMES
from engram.editing.fluency import Health
from engram.editing.making import Kind
from engram.editing.thresholds import Thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one kind of prompts says about an edit.

    Args:
        kind: the kind of prompts.
        good: how many are as wished.
        of: how many there are.
        least: the share that is needed, 0 to 1.
        gain: for neighbors by how many nats per token the new answer gained on the old one, on average.
        most: how much of that is allowed.
        worst: the one that is farthest from what was wished, where not all are as wished.
    """

    kind: Kind
    good: int
    of: int
    least: float | int
    gain: float | None = None
    most: float | int | None = None
    worst: Comparison | None = None

    @property
    def share(self) -> float:
        """The share that is as wished."""
        return self.good / self.of

    @property
    def ok(self) -> bool:
        """Whether the share suffices, and the new answer has not gained too much on the neighbors'."""
        spilt = self.gain is not None and self.most is not None and not self.gain <= self.most
        return self.share >= self.least and not spilt

    def text(self) -> str:
        """Return the part in a few words."""
        name, does = NAMES[self.kind]
        gain = "" if self.gain is None or self.most is None else f"; the new answer gained {self.gain:.1f} nats there"
        limit = "" if not gain else f" (allowed: {self.most:.1f})"
        return f"{name}: {self.good} of {self.of} {does} (needed: {percent(self.least)}){gain}{limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an edit is worth.

    Args:
        parts: one for each kind of prompt that was asked.
        fluency: whether the model writes as well as before; `None` where that was not measured.
    """

    parts: tuple[Part, ...]
    fluency: bool | None = None

    @property
    def ok(self) -> bool:
        """Whether every part is."""
        return all(part.ok for part in self.parts) and self.fluency is not False

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for every part that is not ok, naming the worst prompt."""
        found = [_reason(part) for part in self.parts if not part.ok]
        return (*found, *(["the model no longer writes as well as before"] if self.fluency is False else []))

    def text(self) -> str:
        """Return the verdict in one line."""
        return "verdict: ok" if self.ok else f"verdict: NOT OK: {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "ok": self.ok,
            "reasons": list(self.reasons),
            "parts": [
                {
                    "kind": part.kind,
                    "good": part.good,
                    "of": part.of,
                    "share": part.share,
                    "least": part.least,
                    "gain": part.gain,
                    "most": part.most,
                    "ok": part.ok,
                    "worst": None if part.worst is None else part.worst.shown or part.worst.text,
                }
                for part in self.parts
            ],
            "fluency": self.fluency,
        }


def least_shares(limits: Thresholds) -> Mapping[Kind, float | int]:
    """Return the share that each kind of prompts needs."""
    return {
        "prompt": 1.0 if limits.require_target else 0.0,
        "paraphrase": limits.paraphrase,
        "context": limits.context,
        "neighbor": limits.neighbor,
        "other fact": limits.other_fact,
        "unrelated fact": limits.unrelated_fact,
    }


def verdict_on(facts: Sequence[FactCheck], health: Health | None, limits: Thresholds) -> Verdict:
    """Return the verdict on what was asked about some facts.

    Args:
        facts: what was asked; all facts of an edit count together.
        health: how fluent the model still is, where that was measured.
        limits: the thresholds.
    """
    least = least_shares(limits)
    answers = [answer for fact in facts for answer in fact.answers]
    parts = [_part(kind, [a for a in answers if a.kind == kind], least[kind], limits.spill) for kind in NAMES]
    return Verdict(parts=tuple(p for p in parts if p is not None), fluency=None if health is None else health.ok)


def _part(kind: Kind, answers: Sequence[Comparison], least: float | int, spill: float | int) -> Part | None:
    if not answers:
        return None
    gains = [answer.gain for answer in answers if answer.gain is not None] if kind == "neighbor" else []
    wrong = [answer for answer in answers if not answer.ok]
    return Part(
        kind=kind,
        good=len(answers) - len(wrong),
        of=len(answers),
        least=least,
        gain=sum(gains) / len(gains) if gains else None,
        most=spill if gains else None,
        worst=worst_first(wrong or answers)[0] if wrong or gains else None,
    )


def _reason(part: Part) -> str:
    name, does = NAMES[part.kind]
    if part.kind == "prompt":
        text = f"{part.of - part.good} of {part.of} prompts did not get the new answer"
        return text + _example(part)
    if part.share < part.least:
        return f"{part.good} of {part.of} {name} {does} (needed: {percent(part.least)}){_example(part)}"
    gained = f"the new answer gained {part.gain:.1f} nats on the old one among {name} (allowed: {part.most:.1f})"
    return gained + _example(part)


def _example(part: Part) -> str:
    if part.worst is None:
        return ""
    name = part.worst.subject or part.worst.shown or part.worst.text
    return f", such as {name}: {said(part.worst.before)} -> {said(part.worst.after)}"
