"""Methods as the command line shows them, and settings as it takes them; nothing here loads a model."""

import json
from typing import Any

import pytest
from families import tiny

from engram.cli import main
from engram.cli.options import method_settings, needs_keys
from engram.cli.sweep import shared_settings
from engram.editing.methods import METHODS, method_kind, method_named
from engram.editing.parts.editor import Editor
from engram.editing.parts.published import PUBLISHED, RULES, Model, Published, chosen, published
from engram.errors import SettingError
from engram.settings import settings


def run(*arguments: str) -> int:
    """Type a command; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_all_methods_are_listed_with_what_one_wants_to_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    text = capsys.readouterr().out
    assert all(word in text for word in (*METHODS, "training", "exports"))
    assert run("methods", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    assert [row["name"] for row in rows] == list(METHODS)
    assert all(row["summary"] and row["changes"] and row["at_once"] for row in rows)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_setting_of_a_method_has_a_meaning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", name, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["settings"]
    assert {row["name"] for row in rows} == set(settings(method_kind(name)))
    assert [row["name"] for row in rows if not row["meaning"]] == []
    kind = method_kind(name)
    assert issubclass(kind, Editor) and kind.name == name


def test_types_are_printed_as_the_words_that_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "rome") == 0
    text = capsys.readouterr().out
    assert "code | paper | rrome" in text and "Sequence[str]" in text and "Literal" not in text


def test_typed_settings_become_values_and_wrong_ones_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    found = method_settings("memit", ["layers=3-5", "weight=15000", "stop=none"], preset="paper", chat=False)
    assert found == {"layers": (3, 4, 5), "weight": 15_000, "stop": None, "preset": "paper"}
    assert method_settings("none", None) == {}
    with pytest.raises(SettingError, match="given twice"):
        method_settings("rome", ["layer=3"], layer=2)
    with pytest.raises(SettingError, match="no method 'none'"):
        method_settings("none", ["layer=3"])
    fact = ("{} lives in", "--subject", "Ann", "--to", "Rome")
    for verb in (("edit", "no such model", *fact), ("evaluate", "no such model", "mini"), ("tune", "no such model")):
        assert run(*verb, "--set", "layr=1") == 2
        assert "Did you mean 'layer'" in " ".join(capsys.readouterr().err.split())
    assert run("sweep", "no such model", "mini", "--set", "stepz=1") == 2
    assert "Did you mean 'steps'" in " ".join(capsys.readouterr().err.split())
    assert run("edit", "no such model", *fact, "--method", "romme") == 2
    assert "Did you mean 'rome'" in " ".join(capsys.readouterr().err.split())


def test_in_a_sweep_each_method_takes_the_settings_that_it_has() -> None:
    found = shared_settings(["rome", "ft"], ["steps=3", "kl=0.5"], preset="code")
    assert found == {"rome": {"steps": 3, "kl": 0.5, "preset": "code"}, "ft": {"steps": 3}}


def test_only_methods_on_key_statistics_need_text() -> None:
    assert (
        needs_keys("rome", {}) and needs_keys("memit", {}) and not needs_keys("ft", {}) and not needs_keys("none", {})
    )
    assert not needs_keys("rome", {"corpus": "a.txt"})


def test_methods_are_imported_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "push", "editing_fakes:Push")
    made: Any = method_named("push", size=2.0)
    assert made.size == 2.0
    with pytest.raises(SettingError, match="no setting 'sise'.*Did you mean 'size'"):
        method_named("push", sise=2.0)


def test_published_rows_have_sources_and_tell_models_of_one_architecture_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in PUBLISHED:
        assert row.source and row.method in RULES and row.models
        assert set(row.numbers) <= set(settings(method_kind(row.method)))
    lm = tiny("llama")
    own = Model("llama", lm.n_layers, lm.d_model, round(lm.config.vocab_size / 1000))
    other = Model("llama", lm.n_layers, lm.d_model, own.vocabulary + 96)
    rows = tuple(
        Published("memit", (model,), {"layers": (layer,)}, f"paper {layer}") for layer, model in enumerate((other, own))
    )
    monkeypatch.setattr("engram.editing.parts.published.PUBLISHED", rows)
    assert published(lm, "memit") == rows[1] and published(lm, "rome") is None
    choice = chosen(lm, "memit", layers=None, weight=None)
    assert choice.layers == (1,) and choice.notes[0] == "Layers 1: the published choice for this model (paper 1)."
