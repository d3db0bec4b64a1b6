"""Tuning finds what edits best with few edits, makes none twice, and what it found is what edits then use."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import golden_tokenizer, tiny, tiny_model

import engram
from engram.cli import main
from engram.editing import FT, ROME, forget_tuned, tuned
from engram.editing.parts import published as published_part
from engram.editing.parts.published import TUNABLE, Model, Published, chosen, untuned
from engram.editing.tuned import Tried, Tuned, keep_tuned, tuned_file
from engram.errors import DataError, SettingError
from engram.evaluation import measuring, trials
from engram.evaluation.halving import Candidate, combinations, edits_needed, halve
from engram.evaluation.metrics import relative_score
from engram.facts import Case, Fact
from engram.intervals import harmonic_interval, jackknife
from engram.models import LM
from engram.runs import RunStore
from engram.stats import KeyStatistics


def case(number: int, **changes: Any) -> Case:
    """A case of nonsense with everything that a score needs."""
    name = f"Ann {number}"
    filled: dict[str, Any] = {
        "id": str(number),
        "fact": Fact(name, "{} lives in", "Rome", "Paris"),
        "paraphrases": (f"The home of {name} is in",),
        "neighborhood": ("Bob lives in", "Eve lives in"),
        **changes,
    }
    return Case(**filled)


def found_for(lm: Any, method: str = "rome", **settings: float) -> Tuned:
    """A tuning result as if made for a model."""
    best = Tried(settings=settings, cases=24, score=87.1, half_width=5.04, columns={"ES": 90.0, "PS": 80.0, "NS": 70.0})
    return Tuned(
        method=method,
        best=best,
        usual=replace(best, settings={"layer": 3, "clamp": 4.0}, score=60.0),
        tried=(best,),
        unedited={"ES": 10.0, "PS": 20.0, "NS": 75.0},
        data="records",
        digest="abc",
        cases=tuple(map(str, range(24))),
        model=lm.name,
        fingerprint=lm.fingerprint,
        date="2026-01-01",
        version="0",
    )


# The search


def test_halving_finds_the_best_with_few_edits() -> None:
    values = TUNABLE["rome"](18)
    pool = combinations(values.together, {"clamp": 4.0})
    asked: dict[tuple[Any, ...], int] = {}

    def rank(some: Sequence[Candidate], count: int) -> list[Candidate]:
        for candidate in some:
            asked[tuple(candidate.values())] = count
        return sorted(some, key=lambda c: abs(c["layer"] - 2) + abs(math.log2(c["clamp"] / 0.5)))

    ranked = halve(pool, values.then, 24, rank)
    assert ranked[0] == {"layer": 2, "clamp": 0.5} and asked[2, 0.5] == 24
    assert len(pool) == 10 and {layer for layer, _ in asked} == set(range(10))
    assert sum(asked.values()) == edits_needed(pool, values.then, 24) <= 150
    # few records: one round, and the second number is tried all the same
    assert halve(pool, values.then, 2, rank)[0] == {"layer": 2, "clamp": 0.5}


def test_every_method_has_numbers_to_tune_and_a_rule_for_each() -> None:
    for method, values in TUNABLE.items():
        for n_layers in (1, 2, 10, 48):
            numbers = values(n_layers)
            usual = untuned(tiny("llama"), method)
            assert set(usual) == {*numbers.together, *numbers.then}
            assert all(0 <= layer < n_layers and layer <= n_layers / 2 for layer in numbers.together["layer"])


def test_the_rule_edits_low_down_and_less_far_where_a_norm_follows_the_mlp() -> None:
    plain, normed = tiny("llama"), tiny("gemma3_text")
    deep = LM(tiny_model("llama", num_hidden_layers=30), golden_tokenizer())
    assert untuned(plain, "rome") == {"layer": 1, "clamp": 4.0}
    assert untuned(normed, "rome") == {"layer": 1, "clamp": 1.0}
    assert untuned(deep, "rome") == {"layer": 3, "clamp": 4.0}


def test_the_score_is_taken_against_the_unedited_model() -> None:
    rows = np.array([[1.0, 1.0, 0.6, 0.8], [1.0, 0.5, 0.6, 0.8], [0.0, 1.0, 0.9, 0.7]])
    es, ps, ns = 2 / 3, 2.5 / 3, 0.7 / (2.3 / 3)
    assert relative_score(rows) == pytest.approx(3 / (1 / es + 1 / ps + 1 / ns))
    better = rows.copy()
    better[:, 2] = 1.0  # neighbors beyond what the model knew count for nothing
    assert relative_score(better) == pytest.approx(3 / (1 / es + 1 / ps + 1))
    assert relative_score(np.zeros((2, 4))) == 0.0


def test_the_jackknife_agrees_with_the_delta_method() -> None:
    rows = np.random.default_rng(0).uniform(0.3, 1.0, (200, 3))
    value, half = jackknife(lambda some: harmonic_interval(some)[0], rows)
    assert (value, half) == pytest.approx(harmonic_interval(rows), rel=0.02)
    assert math.isnan(jackknife(lambda some: 1.0, rows[:1])[1])


# Where numbers come from


def test_numbers_are_typed_tuned_published_named_or_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2")
    rule = chosen(lm, "rome", layer=None, clamp=None)
    assert rule.numbers == untuned(lm, "rome") and len(rule.notes) == 1
    assert "the rule for models that nobody has tuned" in rule.notes[0] and "engram tune" in rule.notes[0]
    assert "race" not in rule.notes[0]  # docs/reading-a-trace.md: a trace does not say where to edit

    monkeypatch.setattr(lm.config, "engram_edit_layer", 2, raising=False)
    named = chosen(lm, "rome", layer=None, clamp=None)
    assert named.layer == 2 and named.notes[0] == "Layer 2: named in the model's config." and len(named.notes) == 2

    own = Model("gpt2", lm.n_layers, lm.d_model, round(lm.config.vocab_size / 1000))
    row = Published("rome", (own,), {"layer": 3, "clamp": 3.0}, "a paper")
    monkeypatch.setattr(published_part, "PUBLISHED", (row,))
    published = chosen(lm, "rome", layer=None, clamp=None)
    assert published.numbers == {"layer": 3, "clamp": 3.0}
    assert published.notes == ("Layer 3 and clamp 3: the published choice for this model (a paper).",)

    keep_tuned(lm, found_for(lm, layer=1, clamp=0.5))
    best = chosen(lm, "rome", layer=None, clamp=None)
    assert best.numbers == {"layer": 1, "clamp": 0.5}
    said = "Layer 1 and clamp 0.5: tuned for this model on 24 records, S 87.1 ± 5.0 (engram tune)."
    assert best.notes == (said,)

    typed = chosen(lm, "rome", layer=0, clamp=None)
    assert typed.numbers == {"layer": 0, "clamp": 0.5} and typed.notes[0].startswith("Clamp 0.5: tuned")
    assert chosen(lm, "rome", layer=0, clamp=1.0).notes == ()
    assert ROME(preset="code").settled(lm)[0].clamp == 3.0  # stands for published numbers
    assert forget_tuned(lm) and not forget_tuned(lm)
    assert chosen(lm, "rome", layer=None, clamp=None) == published


def test_an_edit_says_and_records_what_was_tuned() -> None:
    lm = tiny("gpt2")
    keep_tuned(lm, found_for(lm, "ft", layer=2, lr=0.01))
    try:
        edit = engram.edit(lm, Fact("Ann", "{} lives in", "Rome"), "ft", steps=1)
        assert edit.origins[0].settings["layer"] == 2 and edit.origins[0].settings["lr"] == 0.01
        assert edit.notes[0].startswith("Layer 2 and lr 0.01: tuned for this model")
        report = engram.evaluate(lm, [case(0)], method="ft", steps=1, generate=False)
        how = report.runs[-1].settings["method"]
        assert (how["layer"], how["lr"]) == (2, 0.01) and "tuned for this model" in report.notes[0]
    finally:
        forget_tuned(lm, "ft")


def test_what_was_tuned_survives_only_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny("llama")
    found = found_for(lm, layer=1, clamp=0.5)
    file = keep_tuned(lm, found)
    assert file == tuned_file(lm, "rome") and tuned(lm) == found
    assert [path.name for path in file.parent.iterdir()] == ["rome.json"]  # nothing beside it
    assert "layer 1, clamp 0.5" in repr(found) and "87.1 ± 5.0" in repr(found)
    for text in ("{", "[]", json.dumps({**found.plain(), "format": 99}), json.dumps({"format": 1})):
        file.write_text(text, encoding="utf-8")
        caplog.clear()
        assert tuned(lm) is None and "Tune again" in caplog.text
    assert forget_tuned(lm)


# Tuning


def test_an_interrupted_search_goes_on_and_makes_no_edit_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, cases = tiny("gpt2"), [case(i) for i in range(6)]
    made: list[tuple[Any, str]] = []
    stop_after = [7]
    plain = FT.__call__

    def counting(self: FT, lm: Any, facts: Sequence[Fact], **more: Any) -> Any:
        if len(made) >= stop_after[0]:
            raise KeyboardInterrupt
        made.append((self.layer, self.lr, facts[0].subject))
        return plain(self, lm, facts, **more)

    monkeypatch.setattr(FT, "__call__", counting)
    said: list[tuple[str, int, int]] = []

    def run() -> Tuned:
        report = lambda *what: said.append(what)  # noqa: E731
        return engram.tune(
            lm, cases, method="ft", layer=[0, 1], lr=[0.01, 0.1], steps=2, out=tmp_path, keep=False, progress=report
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    stop_after[0] = 1000
    found = run()
    again = run()
    assert len(made) - len(set(made)) < trials.TOGETHER  # only those of the batch that was cut off
    total = len(set(made))
    assert again == found and len(set(made)) == total and said[-1][1] <= said[-1][2]
    assert found.best.cases == 6 and found.cases == tuple("012345") and found.usual.settings == untuned(lm, "ft")
    assert found.best.score >= found.usual.score
    assert {t.settings["layer"] for t in found.tried} == {0, 1}
    assert found.best in (found.tried[0], found.usual)
    assert tuned(lm, "ft") is None  # keep=False


def test_luck_on_one_record_does_not_change_what_is_used_untuned(tmp_path: Path) -> None:
    lm, cases = tiny("gpt2"), [case(i) for i in range(12)]
    kept: list[dict[str, Any]] = []

    def keep(name: str, ps: Sequence[float]) -> None:
        for one, value in zip(cases, ps, strict=True):
            numbers = {"ES": 1.0, "PS": value, "NS": 0.8, "EM": 0.5, "PM": 0.5, "NM": 0.5}
            kept.append({"id": f"{name} | {one.id}", "metrics": numbers})

    keep("unedited", [0.0] * 12)
    keep("layer 1", [0.5, 1.0] * 6)
    keep("layer 2", [1.0, 1.0, *[0.5, 1.0] * 5])
    keep("layer 3", [1.0] * 11 + [0.5])
    usual, lucky, better = ({"layer": layer} for layer in (1, 2, 3))
    with RunStore(tmp_path, {}) as store:
        store.append(kept)
        tries = trials.Trials(lm, FT(), cases, measuring.LIKELIHOODS, store, lambda *what: None)
        assert tries.key(lucky, 12) > tries.key(usual, 12)
        assert not tries.beats(lucky, usual) and not tries.beats(usual, usual)
        assert tries.beats(better, usual) and not tries.beats(usual, better)


def test_tuning_is_refused_where_it_says_nothing(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    with pytest.raises(SettingError, match="Did you mean 'rome'"):
        engram.tune(lm, [case(0)], method="rom")
    with pytest.raises(SettingError, match="stand for published numbers"):
        engram.tune(lm, [case(0)], preset="code")
    with pytest.raises(SettingError, match="no number to try"):
        engram.tune(lm, [case(0)], layer="first")
    with pytest.raises(SettingError, match="has 4 layers"):
        engram.tune(lm, [case(0)], method="ft", layer=[0, 9])
    with pytest.raises(SettingError, match="records=0"):
        engram.tune(lm, [case(0)], method="ft", records=0)
    with pytest.raises(DataError, match="paraphrases and a neighborhood"):
        engram.tune(lm, [case(0, neighborhood=())], method="ft")


def test_rome_is_tuned_at_the_layers_that_have_statistics(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    rule = int(untuned(lm, "rome")["layer"])
    eye = {layer: torch.eye(lm.d_mlp) for layer in {0, rule}}
    KeyStatistics.of(lm, eye).save(tmp_path / "statistics")
    for given in (eye, KeyStatistics.of(lm, eye), tmp_path / "statistics"):
        found = engram.tune(
            lm,
            [case(0)],
            covariance=given,
            clamp=[1.0, 2.0],
            steps=1,
            contexts=["{}"],
            keep=False,
            out=tmp_path / "runs",
        )
        layers = {tried.settings["layer"] for tried in found.tried}
        assert layers == {0, rule} and {tried.settings["clamp"] for tried in found.tried} >= {1.0, 2.0}
        shutil.rmtree(tmp_path / "runs")
    with pytest.raises(SettingError, match="none of these is to be tried"):
        engram.tune(lm, [case(0)], covariance={3: torch.eye(lm.d_mlp)})


def test_records_that_were_tuned_on_are_told_from_others(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    path = tmp_path / "facts.jsonl"
    rows = [
        {"subject": f"Ann {i}", "prompt": "{} lives in", "target": "Rome", "original": "Paris"}
        | {"paraphrases": [f"The home of Ann {i} is in"], "neighborhood": ["Bob lives in"]}
        for i in range(5)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = engram.datasets.load(path)
    settings = {"layer": [1], "lr": [0.01], "steps": 1}
    try:
        found = engram.tune(lm, data, method="ft", records=2, out=tmp_path / "tuning", **settings)
        assert tuned(lm, "ft") == found
        all_of_them = engram.evaluate(lm, data, method="ft", steps=1, generate=False)
        assert "2 of these 5 records were used to tune" in all_of_them.notes[-1]
        others = engram.evaluate(lm, data.select(skip=2), method="ft", steps=1, generate=False)
        assert len(others.runs[-1].scored) == 3 and not any("were used to tune" in note for note in others.notes)
    finally:
        forget_tuned(lm, "ft")


def test_the_command_tunes_shows_and_forgets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def fake(lm: Any, data: Any, *, progress: Any, **options: Any) -> Tuned:
        asked.update(options, data=data)
        progress("layer 0", 1, 2)
        found = found_for(lm, "ft", layer=0, lr=0.005)
        keep_tuned(lm, found)
        return found

    monkeypatch.setattr("engram.evaluation.tune", fake)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["tune", "mini", "--method", "ft", *arguments])
        assert left.value.code == 0
        return capsys.readouterr().out

    assert "Nobody has tuned ft for mini here" in run("--show")
    told = run("--layers", "0-1", "--rates", "0.005,0.01", "--records", "2", "--data", "x.json")
    assert (asked["layer"], asked["lr"], asked["records"], asked["data"]) == ([0, 1], [0.005, 0.01], 2, "x.json")
    assert "ft of mini: layer 0, lr 0.005" in told
    assert "layer 0, lr 0.005" in run("--show")
    assert json.loads(run("--show", "--json"))["tuned"]["best"]["settings"] == {"layer": 0, "lr": 0.005}
    assert "Forgotten" in run("--forget") and "nothing to forget" in run("--forget")
