"""The column "Verdict ok": a record is judged as `engram check` judges an edit."""

import numpy as np
import pytest

from engram.editing import Thresholds
from engram.evaluation import verdict
from engram.evaluation.scores import CaseScores
from engram.facts import Case, Fact


def scores(prompt: float, paraphrase: float, near: list[float]) -> CaseScores:
    """Scores in which the new answer leads by so many nats."""
    pairs = {"rewrite": [prompt], "paraphrase": [paraphrase], "neighborhood": near}
    return CaseScores(
        **{name: np.array([[5.0 - lead, 5.0] for lead in leads]).reshape(-1, 2) for name, leads in pairs.items()}
    )


BEFORE = scores(-4.0, -4.0, [-8.0] * 10)


@pytest.mark.parametrize(
    ("after", "ok"),
    [
        (scores(4.0, 4.0, [-8.0] * 10), 1.0),
        (scores(-0.1, 4.0, [-8.0] * 10), 0.0),  # the prompt
        (scores(4.0, -0.1, [-8.0] * 10), 0.0),  # the paraphrase
        (scores(4.0, 4.0, [0.1] * 3 + [-8.0] * 7), 0.0),  # 7 of 10 neighbors
        (scores(4.0, 4.0, [0.1] * 1 + [-8.0] * 9), 1.0),
        (scores(4.0, 4.0, [-0.1] * 10), 0.0),  # all of them nearly
    ],
)
def test_a_case_is_judged_by_the_rule_of_check(after: CaseScores, ok: float) -> None:
    case = Case(id="0", fact=Fact("Ann", "{} lives in", "Rome", "Paris"))
    limits = Thresholds()
    assert limits.neighbor > 0.7 and limits.spill < 7.9
    assert verdict(case, BEFORE, after)["ok"] == ok


def test_neighbors_that_were_wrong_before_are_not_held_against_an_edit() -> None:
    case = Case(id="0", fact=Fact("Ann", "{} lives in", "Rome", "Paris"))
    before, after = scores(-4.0, -4.0, [1.0] * 9 + [-8.0]), scores(4.0, 4.0, [1.0] * 9 + [-8.0])
    assert verdict(case, before, after)["ok"] == 1.0 and verdict(case, before, after)["NS"] == pytest.approx(0.1)


def test_a_case_without_neighbors_is_not_judged() -> None:
    case = Case(id="0", fact=Fact("Ann", "{} lives in", "Rome", "Paris"))
    assert "ok" not in verdict(case, scores(-4.0, -4.0, []), scores(4.0, 4.0, []))
