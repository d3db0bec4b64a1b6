"""Records are made of what a model is shown to know, and of nothing else."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest
from families import tiny

from engram.datasets import known
from engram.editing.answers import Answer, Question
from engram.errors import DataError
from engram.kinds import load_kinds

SAID = ("Alba", "Bora", "Cora", "Alba City")


def answering(monkeypatch: pytest.MonkeyPatch, *, sure: float = 0.9) -> list[int]:
    """Let models answer by a made-up rule, and count how many questions are asked."""
    asked: list[int] = []

    def ask(lm: Any, questions: Sequence[Question]) -> list[Answer]:
        asked.append(len(questions))
        return [Answer(says=SAID[i % len(SAID)], probability=sure if i % 5 else 0.1) for i in range(len(questions))]

    monkeypatch.setattr(sys.modules["engram.datasets.known"], "ask", ask)
    return asked


def test_records_are_what_the_model_says_with_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch)
    cases = list(known(tiny("gpt2"), count=8))
    assert len(cases) == 8 and len(asked) == 3  # three records of each relation, and no question too many
    assert len({case.relation for case in cases}) == 3 and len({case.id for case in cases}) == 8
    kinds = {kind.name: kind for kind in load_kinds()}
    for case in cases:
        kind = kinds[case.relation.split(", ")[0]]
        place = kind.subjects.index(case.fact.subject)
        assert place % 5 and case.fact.original == SAID[place % 4]
        assert case.fact.target in SAID and {case.fact.target, case.fact.original} != {"Alba", "Alba City"}
        assert len(case.paraphrases) >= 3 and all(case.fact.subject in text for text in case.paraphrases)
        assert 2 <= len(case.neighborhood) <= 10 and case.fact.text not in case.neighborhood
        answers = {case.fact.prompt.replace("{}", s): SAID[i % 4] for i, s in enumerate(kind.subjects)}
        assert {answers[text] for text in case.neighborhood} == {case.fact.original}
        assert {answers[text] for text in case.attributes} == {case.fact.target}
    assert list(known(tiny("gpt2"), count=8)) == cases
    assert known(tiny("gpt2"), count=8, seed=1).digest != known(tiny("gpt2"), count=8).digest


def test_a_model_that_knows_nothing_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, sure=0.2)
    with pytest.raises(DataError, match="Give data of your own"):
        known(tiny("gpt2"))
