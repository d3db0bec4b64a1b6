"""Averages over facts: groups, intervals, facts left out, and runs that are interrupted."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerance
from families import golden_lm

from engram.errors import DataError, RunError, SettingError
from engram.facts import Case, Fact
from engram.locate import GROUPS, AverageTrace, compare_severed, token_groups, trace, trace_many
from engram.locate.tracing import averages
from test_locate_golden import CASES

FACTS = [Fact.from_text(case["prompt"], case["subject"], original=case["answer"].strip()) for case in CASES]
FACTS = [f for f, case in zip(FACTS, CASES, strict=True) if case["answer"] in (" Denver", " clarinet")] + [
    Fact.from_text(case["prompt"], case["subject"]) for case in CASES if case["answer"] not in (" Denver", " clarinet")
]
OPTIONS: dict[str, Any] = {"window": 3, "noise": 0.25, "samples": 2}


def test_groups_are_disjoint_and_complete() -> None:
    for length in range(1, 9):
        for begin in range(length):
            for end in range(begin + 1, length + 1):
                groups = token_groups((begin, end), length)
                tokens = [t for group in groups.values() for t in group]
                assert sorted(tokens) == list(range(begin, length))
                assert groups["last subject token"] == [end - 1]
                assert end == length or groups["last token"] == [length - 1]
    assert list(token_groups((1, 4), 9)) == list(GROUPS)


def test_averages_are_means_of_single_traces() -> None:
    lm = golden_lm()
    average = trace_many(lm, FACTS, **OPTIONS)
    single = [trace(lm, fact, **OPTIONS) for fact in FACTS]
    assert average.count == len(FACTS)
    totals = np.array([t.total_effect for t in single])
    rounding = 2 * tolerance.of_probability(lm)  # of an effect, a difference of two
    assert average.total.mean == pytest.approx(totals.mean(), abs=rounding)
    half_width = 1.959964 * totals.std(ddof=1) / math.sqrt(len(totals))
    assert average.total.half_width == pytest.approx(half_width, abs=2 * rounding)
    for group in ("last subject token", "middle subject tokens"):
        rows = [
            t.effect("mlp").numpy()[token_groups(t.subject_range, len(t.tokens))[group]].mean(0)
            for t in single
            if group in token_groups(t.subject_range, len(t.tokens))
        ]
        found = average.effects["mlp"][group]
        assert found.count == len(rows)
        np.testing.assert_allclose(found.mean, np.mean(rows, 0), atol=rounding)
        np.testing.assert_allclose(
            found.half_width, 1.959964 * np.std(rows, 0, ddof=1) / math.sqrt(len(rows)), atol=2 * rounding
        )
    peak = average.peak("state")
    assert peak.effect == max(max(means.mean) for means in average.effects["state"].values())
    json.dumps(average.record(), allow_nan=False)


def test_facts_that_the_model_does_not_know_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    unknown = Fact(FACTS[0].subject, FACTS[0].prompt, original="clarinet")
    long = Fact("Kara", "{} " + "is " * 2000)
    with caplog.at_level(logging.INFO):
        average = trace_many(golden_lm(), [FACTS[0], Case(id="1", fact=unknown), long], sites="state", **OPTIONS)
    assert (average.count, average.dropped, len(average.failed)) == (1, 1, 1)
    assert "1 dropped" in caplog.text
    assert math.isnan(average.total.half_width)
    with pytest.raises(DataError, match="does not know 1"):
        trace_many(golden_lm(), [unknown], sites="state", **OPTIONS)


def test_an_interrupted_run_keeps_what_is_done_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, done = golden_lm(), 0
    options: dict[str, Any] = {**OPTIONS, "sites": "state"}
    whole = trace_many(lm, FACTS, **options)
    real = averages.trace_with

    def stopping(*arguments: Any, **keywords: Any) -> Any:
        nonlocal done
        if done == 2:
            raise KeyboardInterrupt
        done += 1
        return real(*arguments, **keywords)

    monkeypatch.setattr(averages, "trace_with", stopping)
    with pytest.raises(KeyboardInterrupt):
        trace_many(lm, FACTS, out=tmp_path / "run", **options)
    results = tmp_path / "run" / "results.jsonl"
    assert len(results.read_text().splitlines()) == 2
    assert AverageTrace.load(tmp_path / "run").count == 2
    with results.open("a") as file:  # what a killed process may leave
        file.write('{"id": "half')
    counted = 0

    def counting(*arguments: Any, **keywords: Any) -> Any:
        nonlocal counted
        counted += 1
        return real(*arguments, **keywords)

    monkeypatch.setattr(averages, "trace_with", counting)
    again = trace_many(lm, FACTS, out=tmp_path / "run", **options)
    assert counted == len(FACTS) - 2
    rounding = 2 * tolerance.of_probability(lm)
    assert again.total.mean == pytest.approx(whole.total.mean, abs=rounding)
    np.testing.assert_allclose(
        again.effects["state"]["last token"].mean, whole.effects["state"]["last token"].mean, atol=rounding
    )
    loaded = AverageTrace.load(tmp_path / "run")
    assert loaded.effects == again.effects
    with pytest.raises(RunError, match="window was 3"):
        trace_many(lm, FACTS, out=tmp_path / "run", **{**options, "window": 1})


def test_severed_comparison(tmp_path: Path) -> None:
    lm = golden_lm()
    found = compare_severed(lm, FACTS[:2], out=tmp_path, noise=0.25, samples=2)
    wanted = [
        trace(lm, f, sites="state", severed="mlp", tokens="subject_last", noise=0.25, samples=2) for f in FACTS[:2]
    ]
    np.testing.assert_allclose(
        found.mlp.effects["state"]["last subject token"].mean,
        np.mean([t.effect().numpy()[0] for t in wanted], 0),
        atol=2 * tolerance.of_probability(lm),
    )
    assert found.whole.effects != found.mlp.effects != found.attn.effects
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attn", "mlp", "whole"]
    found.plot(tmp_path / "bars.svg")
    assert "MLP severed" in (tmp_path / "bars.svg").read_text() or (tmp_path / "bars.svg").stat().st_size > 1000
    with pytest.raises(SettingError, match="decides sites"):
        compare_severed(lm, FACTS[:2], sites="mlp")
