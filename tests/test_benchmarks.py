"""Benchmarks that decide a default do what they say, on `mini` and with small numbers."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import engram
from engram.editing import ROME
from engram.evaluation.measuring import LIKELIHOODS
from engram.evaluation.scoring import score_cases
from engram.facts import Case, Fact
from engram.models import LM
from engram.stats import KeyStatistics, open_corpus

ROOT = Path(__file__).resolve().parents[1]
LAYER = 2


@pytest.fixture(scope="module")
def module() -> ModuleType:
    path = ROOT / "benchmarks" / "statistics_amount.py"
    if not path.exists():
        pytest.skip("benchmarks/ is not part of a source distribution")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lm() -> LM:
    return engram.load("mini")


@pytest.fixture
def by_amount(module: ModuleType, lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, KeyStatistics]:
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path))
    texts = [f"Ann lives in Rome and Bo plays {word} all day long." for word in ("chess", "the harp", "a song")] * 40
    return module.counted(lm, LAYER, open_corpus(texts), [0.5, 1], 0)


def test_amounts_hold_so_many_tokens_and_begin_with_the_smaller_ones(by_amount: dict[str, KeyStatistics]) -> None:
    few, more = (by_amount[name][LAYER].moment for name in ("0.5", "1"))
    assert not torch.allclose(few, more)
    rest = 2 * more - few  # what the second half of the text added: second moments, too
    assert float(rest.diagonal().min()) >= -1e-9 * float(rest.diagonal().max())


@pytest.mark.filterwarnings("ignore")
def test_every_amount_scores_as_an_edit_with_these_statistics(
    module: ModuleType, lm: LM, by_amount: dict[str, KeyStatistics]
) -> None:
    city = "The {} is located in the city of"
    cases = [
        Case(
            id=subject,
            fact=Fact(subject, city, target, original),
            paraphrases=(f"Where is the {subject}? In",),
            neighborhood=(f"The {other} is located in the city of",),
        )
        for subject, target, original, other in (
            ("Space Needle", "Rome", "Seattle", "Pike Place Market"),
            ("Louvre", "Oslo", "Paris", "Eiffel Tower"),
        )
    ]
    method = ROME(layer=LAYER, covariance=by_amount["1"], contexts=("{}",), steps=4)
    records = module.measured(lm, cases, method, LAYER, by_amount)
    edits = replace(method, covariance=by_amount["0.5"]).each(lm, [case.fact for case in cases])
    scores = score_cases(lm, cases, edits, scoring=LIKELIHOODS)
    for case, record, score in zip(cases, records, scores, strict=True):
        wanted = module.verdict(case, score, score)
        assert record["id"] == case.id
        for key in ("ES", "PS", "NS", "EM", "PM", "NM"):
            assert record["metrics"]["0.5"][key] == pytest.approx(wanted[key], abs=1e-3)
        assert record["left"]["1"] < 1e-9 < record["left"]["0.5"]


def test_a_later_call_goes_on_under_the_same_settings_only(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "amount.jsonl"
    assert module.kept_records(path, {"layer": 2}) == []
    with path.open("a") as file:
        file.write('{"id": "7"}\n')
    assert module.kept_records(path, {"layer": 2}) == [{"id": "7"}]
    with pytest.raises(AssertionError, match="other settings"):
        module.kept_records(path, {"layer": 3})


def test_the_table_pairs_every_amount_with_the_largest(module: ModuleType) -> None:
    def metrics(kept: float) -> dict[str, float]:
        return {"ES": 1.0, "PS": 1.0, "NS": kept}

    records = [
        {
            "id": str(i),
            "metrics": {"unedited": metrics(1.0), "5": metrics(0.4 + 0.1 * i), "50": metrics(0.5 + 0.1 * i)},
            "left": {"5": 0.25, "50": 0.0},
        }
        for i in range(3)
    ]
    _, _, unedited, few, many, *_ = module.table(records, ["5", "50"]).splitlines()
    assert unedited.startswith("| unedited | 100.0 ")
    assert "| 25.0 % | 0.0 ± 0.0 | 0.0 ± 0.0 | -10.0 ± 0.0 |" in few  # of two amounts over the same records
    assert "| 0.0 % | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 |" in many
