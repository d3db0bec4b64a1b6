"""What was counted is found again: by later releases, by whoever asks for no more, and in folders of one's own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import golden_tokenizer, tiny, tiny_model
from safetensors import safe_open
from safetensors.torch import save_file

import engram
import engram.stats.cache as cache_module
import engram.stats.counting as counting_module
import engram.stats.finding as finding_module
from engram.editing import ROME
from engram.editing.parts.key_statistics import statistics_for
from engram.errors import DataError, EditMismatch, SettingError
from engram.facts import Fact
from engram.models import LM
from engram.stats import KeyStatistics, kept_statistics, open_corpus, statistics
from engram.stats.cache import may_be_kept

TEXTS = [
    f"Ann lives in Rome and Bo plays {word} today." for word in ("chess", "the harp", "a long old song", "it")
] * 30
CORPUS = open_corpus(TEXTS)
FACT = Fact("Ann", "{} lives in", "Rome")


@pytest.fixture
def lm() -> LM:
    return tiny("gpt2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise AssertionError("counted again")

    monkeypatch.setattr(finding_module, "collect", none)


def rewritten(path: Path, **changes: Any) -> None:
    """Write a cache file again under a changed key, as another version would have written it."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    key = {name: value for name, value in {**json.loads(meta["key"]), **changes}.items() if value != "left out"}
    save_file(tensors, path, {**meta, "key": json.dumps(key)})


def test_a_new_release_finds_what_an_old_one_counted(cache: Path, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    first = statistics(lm, 1, CORPUS, tolerance=None)
    (path,) = cache.rglob("layer-1-*")
    old = {"version": "0.1.0", "algorithm": "left out", "per_dimension": "left out"}
    rewritten(path, **old)
    with monkeypatch.context() as patched:
        patched.setattr(finding_module, "collect", None)
        assert torch.equal(statistics(lm, 1, CORPUS, tolerance=None)[1].moment, first[1].moment)
    monkeypatch.setattr(cache_module, "ALGORITHM", 2)  # a way of counting that gives other numbers
    assert not kept_statistics(lm, 1, CORPUS, tokens=1).layers


@pytest.mark.parametrize(
    ("counted", "asked", "found"),
    [
        ([{"tokens": 600}], {"tokens": 600}, 600),
        ([{"tokens": 600}], {"tokens": 500}, 600),
        ([{"tokens": 600}, {"tokens": 900}], {"tokens": 500}, 900),
        ([{"tokens": 600}, {"tokens": 900}], {"tokens": 600}, 600),  # the very same one before the largest
        ([{"tokens": 600}], {"tokens": 601}, None),
        ([{"tokens": 640}], {}, None),  # the rule: 20 tokens for each of 128 dimensions
        ([{"tokens": 640}], {"per_dimension": 5.0}, 640),
        ([{"tokens": 640}], {"per_dimension": 5.1}, None),
        ([{"tolerance": 0.5}], {"tolerance": 0.5}, True),
        ([{"tolerance": None}], {"tokens": 10**6}, True),  # there is no more text
        ([{"tolerance": None}], {"tolerance": 1e-9}, True),
        ([{"tokens": 600, "precision": "float64"}], {"tokens": 600}, 600),
        ([{"tokens": 600}], {"tokens": 600, "precision": "float64"}, None),
        ([{"tokens": 600, "window": 7}], {"tokens": 600}, None),
        ([{"tokens": 600, "seed": 3}], {"tokens": 600}, 600),
    ],
)
def test_counts_serve_whoever_asks_for_no_more(
    counted: list[dict[str, Any]], asked: dict[str, Any], found: int | bool | None, cache: Path, lm: LM
) -> None:
    for options in counted:
        statistics(lm, 1, CORPUS, **options)
    got = kept_statistics(lm, 1, CORPUS, **asked).layers
    assert bool(got) == bool(found)
    assert found in (None, True) or got[1].tokens == found
    assert not kept_statistics(lm, 2, CORPUS, **asked).layers
    assert not kept_statistics(lm, 1, open_corpus(TEXTS[1:]), **asked).layers
    assert not kept_statistics(LM(tiny_model("gpt2").bfloat16(), golden_tokenizer()), 1, CORPUS, **asked).layers


@pytest.mark.usefixtures("cache")
def test_an_edit_finds_what_was_counted_with_a_number(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics(lm, 1, CORPUS, tokens=600)
    monkeypatch.setattr(finding_module, "collect", None)
    method = ROME(layer=1, tokens=500, corpus=TEXTS, contexts=("{}",), steps=1)
    edit = method(lm, [FACT])
    assert edit.origins[0].settings["statistics"]["tokens"] == 600
    assert not any("cache" in note for note in edit.notes)


@pytest.mark.usefixtures("cache")
def test_without_a_corpus_what_is_in_the_cache_is_used_and_said(lm: LM) -> None:
    with pytest.raises(SettingError, match="--corpus FILE, in Python corpus="):
        statistics_for(lm, 1, None, None, seed=0, progress=None)
    statistics(lm, [1, 2], CORPUS, tokens=600)
    found = statistics_for(lm, [1, 2], None, None, seed=0, progress=None)
    assert found[1].tokens == found[2].tokens == 600
    usual = counting_module.Counting().most(lm.d_mlp)
    assert "600 tokens of 120 texts" in found.remark and f"fewer than the {usual:,}" in found.remark
    statistics(lm, 1, open_corpus(TEXTS[:50]), tolerance=None)  # all of another text: good enough for the rule
    whole = statistics_for(lm, 1, None, None, seed=0, progress=None)
    assert "50 texts" in whole.remark and "fewer" not in whole.remark
    with pytest.raises(SettingError, match="600 tokens .* 10,000 are asked for"):
        statistics_for(lm, 2, None, None, seed=0, progress=None, tokens=10_000)
    with pytest.raises(SettingError, match="of layer 3"):
        statistics_for(lm, [1, 3], None, None, seed=0, progress=None)
    edit = ROME(layer=2, contexts=("{}",), steps=1)(lm, [FACT])
    assert any("no corpus was named: 600 tokens of 120 texts" in note for note in edit.notes)


@pytest.mark.usefixtures("cache")
def test_several_layers_are_counted_once_and_only_those_that_are_missing(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics(lm, 1, CORPUS, tokens=600)
    counted: list[Any] = []
    collect = finding_module.collect

    def watched(model: LM, layers: Any, *rest: Any, **options: Any) -> Any:
        counted.append(list(layers))
        return collect(model, layers, *rest, **options)

    monkeypatch.setattr(finding_module, "collect", watched)
    found = statistics_for(lm, [1, 2, 3], None, TEXTS, seed=0, progress=None, tokens=500)
    assert counted == [[2, 3]]
    assert [found[layer].tokens for layer in (1, 2, 3)] == [600, 500, 500]


def test_by_default_counting_stops_at_so_many_tokens_and_measures_what_still_changes(
    cache: Path, lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    found = statistics(lm, 1, CORPUS, tolerance=1e-12, per_dimension=6.0, progress=lambda *seen: told.append(seen))[1]
    assert found.tokens == 768 and not found.whole
    assert found.change is not None and found.change > 1e-12
    what, _, total = told[0]
    assert what == "counting keys of layer 1" and total == 768
    assert statistics(lm, 2, CORPUS, tolerance=0.9, per_dimension=6.0)[2].change is not None
    assert statistics(lm, 3, CORPUS, tolerance=None, per_dimension=6.0)[3].whole
    assert len(list(cache.rglob("layer-*"))) == 3
    assert counting_module.Counting().most(2048) == 2048 * counting_module.PER_DIMENSION


@pytest.mark.usefixtures("cache", "no_counting")
def test_statistics_in_a_folder_of_their_own(tmp_path: Path, lm: LM) -> None:
    moment = torch.eye(lm.d_mlp) + 0.1
    made = KeyStatistics.of(lm, {1: moment, 2: 2 * moment})
    made = replace(made, layers={n: replace(m, tokens=70 + n, change=0.5) for n, m in made.layers.items()})
    folder = made.save(tmp_path / "new" / "counted")
    again = KeyStatistics.load(folder, lm)
    assert torch.equal(again[2].moment, 2 * moment) and again.corpus == made.corpus
    assert (again[1].tokens, again[2].tokens, again[1].change) == (71, 72, 0.5)
    for covariance in (folder, str(folder), again, {1: moment}, moment):
        edit = ROME(layer=1, covariance=covariance, contexts=("{}",), steps=1)(lm, [FACT])
        assert edit.updates
    with pytest.raises(SettingError, match="layers \\[1, 2\\], not for layer 3"):
        ROME(layer=3, covariance=folder, contexts=("{}",))(lm, [FACT])
    with pytest.raises(EditMismatch, match="another model"):
        KeyStatistics.load(folder, tiny("llama"))
    with pytest.raises(EditMismatch, match="another model"):
        ROME(layer=1, covariance=folder, contexts=("{}",))(tiny("llama"), [FACT])


def test_damaged_statistics_are_refused(tmp_path: Path, lm: LM) -> None:
    with pytest.raises(DataError, match="engram stats --out FOLDER"):
        KeyStatistics.load(tmp_path)
    folder = KeyStatistics.of(lm, {1: torch.eye(lm.d_mlp)}).save(tmp_path / "s")
    tensors, document = folder / "statistics.safetensors", folder / "statistics.json"
    whole, text = tensors.read_bytes(), document.read_text()
    tensors.write_bytes(whole[:-8])
    with pytest.raises(DataError, match="not the file"):
        KeyStatistics.load(folder)
    tensors.write_bytes(whole)
    for bad in (text.replace('"format": 1', '"format": 9'), text[:40], "[]", text.replace('"1": {', '"7": {')):
        document.write_text(bad)
        with pytest.raises(DataError, match="damaged|newer"):
            KeyStatistics.load(folder)
    tensors.unlink()
    with pytest.raises(DataError, match="damaged"):
        KeyStatistics.load(folder)
    with pytest.raises(DataError, match="could not be saved"):
        KeyStatistics.of(lm, {}).save(document / "inside")


@pytest.mark.usefixtures("cache")
def test_mini_counts_its_own_text() -> None:
    found = engram.statistics(engram.load("mini"), [2], tokens=400)
    assert found[2].tokens == 400 and "mini's own text" in found.corpus
    with pytest.raises(SettingError, match="--corpus FILE"):
        engram.statistics(tiny("gpt2"), [2])


def test_whether_a_model_that_is_not_loaded_may_have_counts(cache: Path, tmp_path: Path, lm: LM) -> None:
    folder = tmp_path / "model"
    lm.model.config.save_pretrained(folder)
    assert not may_be_kept(cache, str(folder))
    statistics(lm, 1, CORPUS, tokens=50)
    assert may_be_kept(cache, str(folder)) and may_be_kept(cache, "somebody/some-model")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "n_layer": 5}))
    assert not may_be_kept(cache, str(folder))
    (note,) = cache.rglob("model.json")
    assert json.loads(note.read_text())["names"] == [lm.name]
    note.unlink()  # counts of version 0.1 have no note
    assert may_be_kept(cache, str(folder))
