"""A fact that a model is shown to know, and an answer that it does not give: what `engram demo` shows on any model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engram.errors import EngramError
from engram.facts import Fact

if TYPE_CHECKING:
    from engram.editing.answers import Answer
    from engram.kinds import Kind, Relation
    from engram.models import LM

SUBJECT, TARGET = "Space Needle", "Rome"  # the fact that everybody shows, where the model knows it
_SURE, _UNSAID = 0.3, 0.05
_ASKED, _DIFFERENT, _SHOWN = 20, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a model says with confidence about one relation.

    Args:
        fact: the fact to change: `original` is what the model says, `target` an answer of the same kind that it does
            not say here.
        answers: prompts with the model's answers, the fact's own first; no two answers are the same.
    """

    fact: Fact
    answers: "tuple[tuple[str, Answer], ...]"


def known(lm: "LM") -> Known:
    """Ask a model about well-known things, kind by kind, and return the first relation of which it knows enough.

    Raises:
        EngramError: it answers nothing with confidence.
    """
    from engram.kinds import load_kinds

    for kind in load_kinds():
        for relation in kind.relations:
            found = _known(lm, kind, relation)
            if found is not None:
                return found
    raise EngramError(
        f"{lm.name} answers none of the built-in questions with confidence (such as 'The {SUBJECT} is located in the "
        "city of'): no fact to show. Edit one that it knows: engram edit MODEL PROMPT --subject WORDS --to WORDS."
    )


def _known(lm: "LM", kind: "Kind", relation: "Relation") -> Known | None:
    """Return what to show of one relation, where the model gives different things different answers."""
    from engram.editing.answers import Question, ask

    subjects = sorted(kind.subjects, key=lambda subject: subject != SUBJECT)[:_ASKED]
    facts = [relation.fact(subject) for subject in subjects]
    given = zip(facts, ask(lm, [Question(text=fact.text) for fact in facts]), strict=True)
    sure = [(fact, answer) for fact, answer in given if answer.says and answer.probability >= _SURE]
    firsts: dict[str, tuple[Fact, Answer]] = {}
    for fact, answer in sure:
        firsts.setdefault(answer.says, (fact, answer))
    if len(firsts) < _DIFFERENT:
        return None
    # What stands in the name itself ("Sydney Opera House") is no knowledge.
    able = [(fact, answer) for fact, answer in sure if answer.says not in fact.subject]
    for fact, answer in sorted(able, key=lambda pair: (pair[0].subject != SUBJECT, -pair[1].probability)):
        others = [(other, said) for says, (other, said) in firsts.items() if says != answer.says]
        target = _unsaid(lm, fact, [said.says for _, said in others])
        if target is not None:
            shown = [(other.text, said) for other, said in others[:_SHOWN]]
            return Known(fact=replace(fact, original=answer.says, target=target), answers=((fact.text, answer), *shown))
    return None


def _unsaid(lm: "LM", fact: Fact, answers: Sequence[str]) -> str | None:
    """Return the first of some answers that the model does not give to this fact's prompt."""
    ordered = sorted(answers, key=lambda text: text != TARGET) if fact.subject == SUBJECT else answers
    means = lm.score(fact.text, ordered)[0].tolist()  # per token, so that a long name counts as said sooner
    return next((text for text, mean in zip(ordered, means, strict=True) if math.exp(-mean) < _UNSAID), None)
