"""Grids of the published code on the golden model, number by number."""

import json
from pathlib import Path
from typing import Any

import pytest
import tolerance
import torch
from families import golden_lm

from engram.facts import Fact
from engram.locate import CausalTrace, trace
from engram.locate.tracing.settings import TraceSettings
from engram.locate.tracing.work import trace_with

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "golden_tracing.json").read_text())
GRIDS: dict[str, dict[str, Any]] = {
    "state": {"sites": "state"},
    "mlp_window_10": {"sites": "mlp", "window": 10},
    "mlp_window_3": {"sites": "mlp", "window": 3},
    "attn_window_10": {"sites": "attn", "window": 10},
    "attn_window_3": {"sites": "attn", "window": 3},
    "state_uniform_noise": {"sites": "state"},
    "state_severed_mlp": {"sites": "state", "severed": "mlp"},
    "state_severed_attn": {"sites": "state", "severed": "attn"},
}


def options(case: dict[str, Any], grid: str) -> dict[str, Any]:
    noise = f"uniform:{case['noise']}" if "uniform" in grid else case["noise"]
    return {**GRIDS[grid], "noise": noise, "samples": case["samples"], "draws": "published"}


def check(found: CausalTrace, case: dict[str, Any], grid: str) -> None:
    rounding = tolerance.of_probability(golden_lm())
    torch.testing.assert_close(next(iter(found.scores.values())), torch.tensor(case[grid]), atol=rounding, rtol=0)
    baseline = case["corrupted_uniform_noise" if "uniform" in grid else "corrupted"]
    assert found.clean == pytest.approx(case["clean"], abs=rounding)
    assert found.corrupted == pytest.approx(baseline, abs=rounding)
    assert found.answer == found.predicted == case["answer"]
    assert list(found.subject_range) == case["subject_range"]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_published_grids(number: int, grid: str) -> None:
    case = CASES[number]
    fact = Fact.from_text(case["prompt"], case["subject"])
    check(trace(golden_lm(), fact, **options(case, grid)), case, grid)


@pytest.mark.parametrize("grid", [name for name in GRIDS if "severed" not in name])
def test_published_grids_on_the_plain_path(grid: str) -> None:
    case = CASES[4]  # its subject does not begin the prompt
    fact = Fact.from_text(case["prompt"], case["subject"])
    check(trace_with(golden_lm(), fact, TraceSettings.of(**options(case, grid)), plain=True), case, grid)
