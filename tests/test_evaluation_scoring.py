"""Scores against the published evaluation's, and rows that do not know of each other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerance
import torch
from families import golden_lm, tiny

from edits import random_edit
from engram import datasets
from engram.editing import Edit, LowRank
from engram.evaluation import CaseScores, Scoring, score_case, score_cases
from engram.evaluation.perplexity import perplexities
from engram.facts import Case, Fact

FIELDS = ("rewrite", "paraphrase", "neighborhood", "attribute")


@pytest.fixture(scope="module")
def cases(counterfact: Path) -> list[Case]:
    return list(datasets.counterfact(counterfact, limit=3))


@pytest.fixture(scope="module")
def records(golden: Path) -> list[dict[str, Any]]:
    """Records with the published evaluation's scores, before and after the published program's edit."""
    return json.loads((golden / "counterfact.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published_cases(records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    path = tmp_path_factory.mktemp("golden") / "golden.json"
    path.write_text(json.dumps([record["record"] for record in records]), encoding="utf-8")
    return list(datasets.counterfact(path))


def golden_edit(record: dict[str, Any]) -> Edit:
    """The published update as an Edit: u v^T in Conv1D's orientation."""
    lm = golden_lm()
    u, v = torch.tensor(record["u"]).unsqueeze(1), torch.tensor(record["v"]).unsqueeze(1)
    return Edit.of(lm, {lm.mlp_out_name(record["layer"]): LowRank(left=u, right=v)})


def published(scores: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.array([[p["target_new"], p["target_true"]] for p in scores[f"{name}_prompts_probs"]])
        for name in FIELDS
    }


def compare(ours: CaseScores, theirs: dict[str, Any]) -> None:
    for name, wanted in published(theirs).items():
        np.testing.assert_allclose(ours[name], wanted, atol=2 * tolerance.of_log_probability(golden_lm()), rtol=0)


def test_scores_are_the_published_ones_before_an_edit(
    records: list[dict[str, Any]], published_cases: list[Case]
) -> None:
    for record, case in zip(records, published_cases, strict=True):
        compare(score_case(golden_lm(), case), record["pre"])


def test_scores_are_the_published_ones_with_the_weight_changed(
    records: list[dict[str, Any]], published_cases: list[Case]
) -> None:
    lm = golden_lm()
    for record, case in zip(records, published_cases, strict=True):
        weight = lm.mlp_out(record["layer"]).weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += torch.outer(torch.tensor(record["u"]), torch.tensor(record["v"]))
            try:
                compare(score_case(lm, case), record["post"])
            finally:
                weight.copy_(kept)


def test_many_cases_in_one_batch_each_under_its_own_edit_score_as_published(
    records: list[dict[str, Any]], published_cases: list[Case]
) -> None:
    edits = [golden_edit(record) for record in records]
    for ours, record in zip(score_cases(golden_lm(), published_cases, edits), records, strict=True):
        compare(ours, record["post"])


def test_nothing_depends_on_the_batch_or_the_order(cases: list[Case]) -> None:
    lm = golden_lm()
    scoring = Scoring(max_tokens=24, rows=7)
    edits = [random_edit(lm, seed=1, rank=1), None, random_edit(lm, 2, seed=2, size=0.1)]
    together = score_cases(lm, cases, edits, scoring=scoring)
    for index in (2, 0, 1):
        alone = score_case(lm, cases[index], edit=edits[index], scoring=Scoring(max_tokens=24, rows=64))
        same(alone, together[index])


def same(a: CaseScores, b: CaseScores) -> None:
    for name in FIELDS:
        np.testing.assert_allclose(a[name], b[name], atol=2 * tolerance.of_log_probability(golden_lm()))
    for name in ("rewrite_hits", "paraphrase_hits", "neighborhood_next", "rewrite_said", "paraphrase_said", "texts"):
        assert a[name] == b[name], name


def test_texts_begin_with_their_prompts_and_have_the_wanted_length(cases: list[Case]) -> None:
    lm = golden_lm()
    case = cases[0]
    doubled = Case(id=case.id, fact=case.fact, generation=(case.generation[0],) * 2)
    scores = score_case(lm, doubled, scoring=Scoring(max_tokens=30, free=False))
    first, second = scores.texts
    assert first.startswith(case.generation[0])
    assert first != second  # the same prompt twice gives two texts
    assert len(lm.tokenizer(first)["input_ids"]) <= 30
    other_seed = score_case(lm, doubled, scoring=Scoring(max_tokens=30, free=False, seed=1))
    assert other_seed.texts != scores.texts


def test_teacher_forced_hits_are_those_of_plain_passes(cases: list[Case]) -> None:
    lm = golden_lm()
    case = Case(
        id="x",
        fact=cases[0].fact,
        locality=(("The weather is", "very nice"),),
        kept=(Fact(cases[0].fact.subject, cases[0].fact.prompt, None, cases[0].fact.original),),
    )
    scores = score_case(lm, case)
    assert scores.rewrite_hits == [plain_hits(lm, case.fact.text, str(case.fact.target))]
    assert scores.kept_hits == [plain_hits(lm, case.fact.text, str(case.fact.original))]
    assert scores.locality_hits == [plain_hits(lm, "The weather is", "very nice")]
    assert len(scores.locality[0]) == len(lm.tokenizer(" very nice")["input_ids"])


def plain_hits(lm: Any, prompt: str, target: str) -> float:
    ids = lm.tokenizer(prompt)["input_ids"]
    wanted = lm.tokenizer(f" {target}")["input_ids"]
    hits = []
    for i, token in enumerate(wanted):
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids + wanted[:i]])).logits[0, -1]
        hits.append(int(logits.argmax()) == token)
    return sum(hits) / len(hits)


def test_a_case_without_an_original_has_no_true_column() -> None:
    scores = score_case(tiny("gpt2"), Case(id="x", fact=Fact("Rome", "{} is in", "Italy")))
    assert scores.rewrite.shape == (1, 2)
    assert np.isfinite(scores.rewrite[0, 0])
    assert np.isnan(scores.rewrite[0, 1])
    assert scores.paraphrase.shape == (0, 2)


def test_scores_survive_a_results_file(cases: list[Case]) -> None:
    scores = score_case(golden_lm(), cases[0], scoring=Scoring(max_tokens=16))
    back = CaseScores.from_plain(json.loads(json.dumps(scores.plain())))
    for name in FIELDS:
        np.testing.assert_array_equal(back[name], scores[name])
    assert back.plain() == scores.plain()
    lonely = score_case(tiny("gpt2"), Case(id="x", fact=Fact("Rome", "{} is in", "Italy")))
    np.testing.assert_array_equal(CaseScores.from_plain(lonely.plain()).rewrite, lonely.rewrite)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_perplexity_is_that_of_the_model_alone(family: str) -> None:
    lm = tiny(family)
    texts = ["The Space Needle is in Seattle.", "Rome", "It was built a long time ago, in the city of Paris."]
    ids = [lm.tokenizer(text, return_tensors="pt").input_ids for text in texts]
    with torch.no_grad():
        losses = [float(lm.model(row, labels=row).loss) for row in ids]
    wanted = [float(np.exp(loss)) for loss in losses]
    assert perplexities(lm, texts) == pytest.approx(wanted, rel=tolerance.of_log_probability(lm))
    count = ids[0].shape[1]
    (essence,) = perplexities(lm, texts[:1], published=True)
    assert essence == pytest.approx(
        float(np.exp(losses[0] * (count - 1) / count)), rel=tolerance.of_log_probability(lm)
    )
    cut = perplexities(lm, texts[:1], max_tokens=4)
    assert cut != perplexities(lm, texts[:1])
