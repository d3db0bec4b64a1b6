"""What the page says of an edit: everything that was asked counts, and the worst is named."""

from collections.abc import Mapping
from dataclasses import dataclass

from engram.editing.check import Check, Comparison, percent

NAMES: Mapping[str, tuple[str, str]] = {
    "prompt": ("edited prompts", "say it"),
    "paraphrase": ("paraphrases", "follow"),
    "neighbor": ("neighbors", "stay"),
    "other fact": ("other facts of the subject", "stay"),
}
"""For each kind of prompt its name, and what it should do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an edit is worth.

    Args:
        reasons: a sentence for everything that is not as wished.
    """

    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all is as wished."""
        return not self.reasons


def verdict_on(seen: Check) -> Verdict:
    """Return the verdict on a check."""
    reasons: list[str] = []
    for kind, (good, every) in seen.shares().items():
        if good < every:
            name, does = NAMES.get(kind, (f"{kind}s", "are as wished"))
            wrong = next(
                answer for fact in seen.facts for answer in fact.answers if answer.kind == kind and not answer.ok
            )
            reasons.append(f"{good} of {every} {name} {does}, unlike {_told(wrong)}")
    if seen.health is not None and not seen.health.ok:
        reasons.extend(warning.rstrip(".") for warning in seen.health.warnings)
    return Verdict(reasons=tuple(dict.fromkeys(reasons)))


def _told(answer: Comparison) -> str:
    before, after = answer.before, answer.after
    return (
        f"{answer.text!r}: {before.says or '(end)'} {percent(before.probability)} → "
        f"{after.says or '(end)'} {percent(after.probability)}"
    )
