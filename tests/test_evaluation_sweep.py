"""Sweeps cover what was asked, and the adviser says what the numbers say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import golden_lm

from engram import datasets
from engram.errors import SettingError
from engram.evaluation import Place, Run, Scoring, Sweep, advise, sweep
from engram.evaluation.sweep import write_sweep
from engram.facts import Case
from engram.locate import AverageTrace, LayerMeans, Mean
from engram.stats import KeyStatistics

LIGHT = Scoring(generate=False, free=False)


@pytest.fixture(scope="module")
def cases(counterfact: Path) -> list[Case]:
    return list(datasets.counterfact(counterfact, limit=2))


def test_a_sweep_tries_every_layer_and_token_and_goes_on_where_it_was(tmp_path: Path, cases: list[Case]) -> None:
    lm = golden_lm()
    moments = {layer: torch.eye(lm.d_mlp) for layer in (1, 3)}
    rome = {"covariance": KeyStatistics.of(lm, moments), "steps": 4, "contexts": ["{}"]}
    said: list[tuple[str, int, int]] = []

    def run() -> Sweep:
        return sweep(
            lm,
            cases,
            methods=("rome", "ft"),
            layers=(3, 1),
            tokens=("subject_last", "subject_first"),
            out=tmp_path,
            scoring=LIGHT,
            settings={"rome": rome, "ft": {"steps": 2}},
            progress=lambda *what: said.append(what),
        )

    swept = run()
    names = {place.name for place in swept.runs}
    assert names == {
        *(f"rome-layer{at:02d}-{token}" for at in (1, 3) for token in ("subject_last", "subject_first")),
        "ft-layer01",
        "ft-layer03",
    }
    assert said[-1] == ("sweeping", 6, 6)
    assert {what for what, _, _ in said} == {"sweeping", *names}
    different = {str(run.scored[0]["scores"]["rewrite"]) for run in swept.runs.values()}
    assert len(different) == 6  # every place is another edit
    assert run().plain() == swept.plain()
    assert any("Clamp" in note for note in swept.notes) and not any("Layer" in note for note in swept.notes)
    write_sweep(swept, tmp_path)
    assert len(json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["places"]) == 6
    figure = swept.plot()
    assert [axes.get_title() for axes in figure.axes] == ["Efficacy", "Generalisation", "Specificity"]
    assert [line.get_label() for line in figure.axes[0].get_lines()][:3] == [
        "rome, subject last",
        "rome, subject first",
        "ft",
    ]


def test_wrong_places_are_refused(cases: list[Case]) -> None:
    lm = golden_lm()
    with pytest.raises(SettingError, match="no layer 99"):
        sweep(lm, cases, layers=[99])
    with pytest.raises(SettingError, match="Did you mean 'subject_last'"):
        sweep(lm, cases, tokens=["subject_lst"])
    with pytest.raises(SettingError, match="Did you mean 'rome'"):
        sweep(lm, cases, methods=["rom"])


def swept(ns: dict[int, list[float]]) -> Sweep:
    """A sweep with made-up specificities: everything else is perfect."""
    runs: dict[Place, Run] = {}
    for layer, values in ns.items():
        records: list[dict[str, Any]] = [
            {"id": str(i), "metrics": {"ES": 1.0, "PS": 1.0, "NS": value}} for i, value in enumerate(values)
        ]
        runs[Place(method="rome", layer=layer, token="subject_last")] = Run("rome", {}, records)
    return Sweep("m", 4, runs)


def traced(mlp: list[float]) -> AverageTrace:
    means = LayerMeans(tuple(mlp), (0.0,) * len(mlp), 7)
    zero = Mean(0.0, 0.0, 7)
    return AverageTrace(
        model="m",
        count=7,
        dropped=0,
        failed=(),
        clean=zero,
        corrupted=zero,
        total=zero,
        effects={"mlp": {"last subject token": means}},
        window=3,
    )


def test_the_sweep_decides_where_it_can() -> None:
    advice = advise(swept({0: [0.1, 0.2, 0.1], 2: [0.9, 0.91, 0.9], 3: [0.5, 0.5, 0.5]}), traced([0.9, 0.1, 0.2, 0.0]))
    assert advice.layer == 2
    assert "another layer" in advice.reasons[-1] and "The sweep decides" in advice.reasons[-1]


def test_among_equal_layers_the_one_that_leaves_most_as_it_was_is_taken_whatever_the_trace_says() -> None:
    same = {0: [0.2, 0.9, 0.7], 1: [0.3, 0.9, 0.6], 2: [0.2, 0.9, 0.72]}
    assert advise(swept(same)).layer == 2  # S alone
    for key, kept in (("unchanged", {0: 0.9, 1: 0.5, 2: 0.8}), ("kept", {0: 0.1, 1: 0.7, 2: 0.3})):
        sweep = swept(same)
        for place, run in sweep.runs.items():
            for record in run.records:
                record["metrics"][key] = kept[place.layer]
        advice = advise(sweep, traced([0.1, 0.2, 0.9, 0.0]))
        assert advice.layer == max(kept, key=lambda layer: kept[layer])
        assert "leaves most as it was" in " ".join(advice.reasons) and "peaks at layer 2" in advice.reasons[-1]
