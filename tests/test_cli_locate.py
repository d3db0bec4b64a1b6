"""`engram locate` and `engram locators`."""

import json
from pathlib import Path

import pytest
from families import GOLDEN_MODEL

from engram.cli import main
from engram.locate import Grid

PROMPT, SUBJECT = "The maker of Kara 3000 is", "Kara 3000"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    said = capsys.readouterr()
    assert exited.value.code == code, said.err
    return said.out, said.err


def test_one_prompt_by_any_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    verb = ("locate", str(GOLDEN_MODEL), PROMPT, "--subject", SUBJECT, "--by")
    files = ("--plot", str(tmp_path / "lens.png"), "--out", str(tmp_path / "lens"))
    text, said = run(capsys, *verb, "lens", "--set", "top=2", *files)
    assert "the most probable token" in text
    assert "lens.png" in said
    assert (tmp_path / "lens.png").exists()
    assert len(Grid.load(tmp_path / "lens").words[0][0]) == 2
    text, _ = run(capsys, *verb, "tracing", "--set", "samples=2", "--set", "noise=0.25", "--set", "sites=mlp", "--json")
    assert json.loads(text)["axes"] == ["site", "token", "layer"]
    assert json.loads(text)["settings"]["samples"] == 2


def test_many_facts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = {"subject": SUBJECT, "prompt": PROMPT, "template": "The maker of {} is", "attribute": "S", "prediction": "S"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(row) + "\n")
    options = ("--facts", str(tmp_path / "facts.jsonl"), "--by", "lens", "--out", str(tmp_path / "run"))
    text, _ = run(capsys, "locate", str(GOLDEN_MODEL), *options)
    assert "1 facts, 0 dropped" in text
    assert (tmp_path / "run" / "results.jsonl").exists()
    assert Grid.load(tmp_path / "run").samples == 1


def test_the_ways_and_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = run(capsys, "locators")
    assert "lens" in text
    assert "tracing" in text
    text, _ = run(capsys, "locators", "lens")
    assert "new_tokens" in text
    assert "how many words are kept" in text
    text, _ = run(capsys, "locators", "tracing", "--json")
    assert json.loads(text)["samples"] == {"type": "int", "default": "10", "meaning": "number of noise samples."}


def test_wrong_input_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    verb = ("locate", "mini", PROMPT, "--subject", SUBJECT)
    assert "Did you mean 'lens'" in run(capsys, *verb, "--by", "lense", code=2)[1]
    assert "Did you mean 'top'" in run(capsys, *verb, "--by", "lens", "--set", "topp=3", code=2)[1]
    assert "--subject" in run(capsys, "locate", "mini", PROMPT, code=2)[1]
    for name in ("locate", "trace"):
        assert f"such as: engram {name} mini" in run(capsys, name, "mini", PROMPT, code=2)[1]
