"""Key statistics on the command line: counted once, found by every verb, asked for before a model is loaded."""

import json
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from families import GOLDEN_MODEL
from rich.console import Console

import engram.cli.watching as watching
import engram.stats.counting as counting
import engram.stats.finding as finding
from engram.cli import main
from engram.progress import Doing
from engram.stats.counting import PER_DIMENSION

MODEL = str(GOLDEN_MODEL)
FACT = ("{} lives in", "--subject", "Ann", "--to", "Rome", "--layer", "2")
VERBS: dict[str, tuple[str, ...]] = {
    "edit": ("edit", MODEL, *FACT),
    "evaluate": ("evaluate", MODEL, "facts.jsonl"),
    "sweep": ("sweep", MODEL, "facts.jsonl"),
    "tune": ("tune", MODEL),
    "serve": ("serve", MODEL),
    "demo": ("demo", "--model", MODEL),
    "stats": ("stats", MODEL),
}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on both channels, on one line."""
    return " ".join(" ".join(capsys.readouterr()).split())


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of text, in an empty folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path / "usual"))
    lines = [f"Ann lives in Rome and Bo plays {song} all day long." for song in ("chess", "the harp", "a song")]
    Path("text.txt").write_text("\n".join(lines * 30) + "\n")
    return "text.txt"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("engram.models.load", load)


def test_what_stats_counts_is_found(
    corpus: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = ("stats", MODEL, "--layers", "2", "--corpus", corpus, "--tokens", "600", "--cache", "c", "--out", "s")
    assert run(*count) == 0
    shown = said(capsys)
    assert "loading " in shown  # said at once, where there is no terminal to draw on
    usual = round(PER_DIMENSION * 640)
    assert f"find them with --corpus text.txt --tokens 600 --cache c (as a rule they ask for {usual:,}" in shown
    assert "Also in s: --statistics s" in shown
    assert "ENGRAM_CACHE" in os.environ and not Path("usual").exists()
    monkeypatch.setattr(finding, "collect", None)  # nothing is counted from here on
    monkeypatch.setattr(import_module("engram.editing.guard"), "guard", lambda *_, **__: None)
    for how in (
        ("--corpus", corpus, "--tokens", "600", "--cache", "c"),
        ("--corpus", corpus, "--tokens", "500", "--cache", "c"),
        ("--cache", "c"),
        ("--statistics", "s"),
    ):
        assert run(*VERBS["edit"], "--json", *how) == 0
        origin = json.loads(capsys.readouterr().out)["origins"][0]
        assert origin["settings"]["statistics"]["tokens"] == 600
        assert any("no corpus was named: 600 tokens of text.txt" in n for n in origin["notes"]) == (how[0] == "--cache")
    assert run(*VERBS["edit"], "--statistics", "s", "--corpus", corpus) == 2
    assert "not both" in said(capsys)


def test_an_evaluation_names_the_count_and_goes_on_with_it(corpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("facts.jsonl").write_text(
        json.dumps({"subject": "Ann", "prompt": "{} lives in", "target": "Rome", "original": "Oslo"}) + "\n"
    )
    stats = ("stats", MODEL, "--layers", "2", "--corpus", corpus, "--tokens")
    typed = ("evaluate", MODEL, "facts.jsonl", "--no-generate", "--layer", "2", "--out", "runs/a", "--tokens", "500")
    assert run(*stats, "600") == 0
    assert run(*typed, "--corpus", corpus) == 0
    settings = json.loads(Path("runs/a/run.json").read_text())["settings"]["method"]
    assert settings["covariance"]["tokens"] == {"2": 600} and "text.txt" in settings["covariance"]["corpus"]
    assert run(*stats, "700") == 0
    capsys.readouterr()
    assert run(*typed, "--corpus", corpus) == 2  # a number was asked for: the largest count serves, which is another
    assert "700" in said(capsys)
    assert run(*typed[:-2], "--corpus", corpus) == 0  # nothing was: the run's own count


@pytest.mark.usefixtures("corpus", "no_model")
@pytest.mark.parametrize("verb", VERBS)
def test_text_that_is_missing_is_said_before_a_model_is_loaded(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").write_text("\n")
    for name, why in (("nowhere.txt", "cannot be read"), ("empty.txt", "no text"), ("x.pdf", "allowed are")):
        assert run(*VERBS[verb], "--corpus", name) == 2
        assert why in said(capsys)
    if verb != "serve":  # on the page, fine-tuning needs none
        assert run(*VERBS[verb]) == 2
        shown = said(capsys)
        assert "--corpus FILE" in shown and "a model was loaded" not in shown


@pytest.mark.usefixtures("no_model")
def test_methods_without_statistics_need_no_text(corpus: str) -> None:
    with pytest.raises(AssertionError, match="a model was loaded"):
        main([*VERBS["edit"], "--method", "ft"])
    with pytest.raises(AssertionError, match="a model was loaded"):
        main([*VERBS["edit"], "--corpus", corpus])


def test_ctrl_c_says_what_is_kept(
    corpus: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counting, "CHUNK", 400)
    monkeypatch.setattr(counting, "BATCH", 100)
    typed = (*VERBS["edit"], "--corpus", corpus)
    count, counted = counting._count_batch, list[int]()

    def interrupted(*rest: Any) -> None:
        counted.append(1)
        if len(counted) == 3:
            raise KeyboardInterrupt
        count(*rest)

    monkeypatch.setattr(counting, "_count_batch", interrupted)
    assert run(*typed) == 130
    shown = said(capsys)
    assert "tokens counted so far are kept in the cache; start the same command again" in shown
    assert list(Path("usual").rglob("unfinished-*"))
    counted[:] = [1] * 2
    assert run("stats", MODEL, "--layers", "2", "--corpus", corpus) == 130
    assert "kept in the cache" in said(capsys)


@pytest.mark.parametrize(
    ("typed", "place", "sentence"),
    [
        (("check", "e", "mini"), "engram.editing.check.check", "A check keeps nothing"),
        (("trace", "mini", "Ann lives in", "--subject", "Ann"), "engram.locate.trace", "One trace is kept when it is"),
        (("edit", "mini", *FACT), "engram.editing.edit", "Nothing was saved. Key statistics that were counted stay"),
        (("sweep", "mini", "mini", "--out", "runs"), "engram.evaluation.sweep", "Finished places are kept in runs"),
        (("apply", "e", "mini", "--out", "m"), "engram.editing.guard.guard", "Nothing was written"),
        (("demo", "--out", "d"), "engram.cli.demo.known", "What was written so far is in d"),
    ],
)
@pytest.mark.usefixtures("corpus")
def test_ctrl_c_in_every_verb(
    typed: tuple[str, ...],
    place: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    lm = SimpleNamespace(name="mini")
    for verb in ("check", "trace", "edit", "sweep", "apply", "demo"):
        monkeypatch.setattr(import_module(f"engram.cli.{verb}"), "load_model", lambda *_, **__: lm)
    monkeypatch.setattr("engram.editing.Edit.load", lambda *_, **__: None)
    monkeypatch.setattr(import_module("engram.cli.sweep"), "read_data", lambda *_, **__: None)
    home, _, name = place.rpartition(".")
    monkeypatch.setattr(import_module(home), name, interrupted)
    assert run(*typed) == 130
    assert sentence in said(capsys)


def test_ctrl_c_while_a_model_is_loaded(
    corpus: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engram.models.load", interrupted)
    assert run(*VERBS["edit"], "--corpus", corpus) == 130
    assert "Nothing was changed; start the same command again" in said(capsys)


def test_signs_of_life_elsewhere_than_on_a_terminal_are_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engram.progress.FIRST", 0.0)
    what = Doing("counting keys of layer 6", unit="tokens", about=True)
    with watching.bars() as report:
        report(what, 1_000, 40_960)
        report(what, 2_000, 40_960)
    assert said(capsys) == "counting keys of layer 6: 1,000 of about 40,960 tokens, 0 s"
    with watching.bars(quiet=True) as report:
        report(what, 20_000, 40_960)
    assert said(capsys) == ""


def test_signs_of_life_on_a_terminal_are_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "err", lambda: Console(stderr=True, force_terminal=True, width=120))
    with watching.bars() as report:
        report(Doing("counting keys of layer 6", unit="tokens"), 1_000, 40_960)
    assert "1,000 of 40,960 tokens" in said(capsys)
    with watching.busy("loading mini ..."):
        pass
    assert "loading mini" in said(capsys)
