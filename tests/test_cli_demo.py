"""The command line from outside: the demo, speed of the start, errors and exit codes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engram.cli import main

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    code = "from engram.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )


def test_the_demo_shows_an_edit_that_follows_its_paraphrases_and_breaks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_exits_with(0, "demo", "--out", str(tmp_path / "demo"), "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["trace"]["says"] == "Seattle"
    assert result["trace"]["corrupted"] < 0.5 < result["trace"]["clean"]
    assert (tmp_path / "demo" / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert result["check"]["shares"]["prompt"] == {"ok": 1, "of": 1}
    assert {"paraphrase", "neighbor", "other fact"} <= set(result["check"]["shares"])
    assert all(share["ok"] == share["of"] > 0 for share in result["check"]["shares"].values())
    assert result["same_after_loading"]
    assert result["bit_identical_after_revert"]


@pytest.mark.slow
def test_the_demo_on_a_model_from_a_folder_with_a_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from itertools import islice

    from engram.mini.text import statistics_text
    from engram.models import load

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path / "cache"))  # mini has its statistics in the one of this run
    lm = load("mini", device="cpu")
    for part in (lm.model, lm.tokenizer):
        part.save_pretrained(tmp_path / "mine")
    (tmp_path / "corpus.txt").write_text("\n".join(islice(statistics_text(tokens=9_000), 300)), encoding="utf-8")
    mine = ("--model", str(tmp_path / "mine"), "--out", str(tmp_path / "demo"))
    main_exits_with(2, "demo", *mine)
    said = capsys.readouterr()
    assert "needs key statistics" in said.err and said.out == "" and not (tmp_path / "demo").exists()
    main_exits_with(0, "demo", *mine, "--corpus", str(tmp_path / "corpus.txt"))
    lines = capsys.readouterr().out.splitlines()
    said = " ".join(" ".join(lines).split())  # a long path breaks lines
    for part in ("mine knows", "Seattle", "Make it say Rome", "the same logits", "every bit as before"):
        assert part in said
    assert max(map(len, lines)) <= 80


def test_a_fact_is_shown_that_the_model_knows_with_an_answer_that_it_does_not_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from engram import kinds
    from engram.cli.known import known
    from engram.models import load

    lm = load("mini", device="cpu")
    found = known(lm)
    assert (found.fact.subject, found.fact.original, found.fact.target) == ("Space Needle", "Seattle", "Rome")
    says = [answer.says for _, answer in found.answers]
    assert len(set(says)) == len(says) > 2 and found.answers[0][0] == found.fact.text
    landmarks = next(kind for kind in kinds.load_kinds() if kind.name == "landmark")
    fewer = replace(landmarks, subjects=tuple(s for s in landmarks.subjects if s not in ("Space Needle", "Louvre")))
    monkeypatch.setattr(kinds, "load_kinds", lambda: (fewer,))
    other = known(lm).fact
    assert lm.generate(other.text, max_new_tokens=6).startswith(f"{other.text} {other.original}")
    assert float(lm.score(other.text, [str(other.target)])) > float(lm.score(other.text, [str(other.original)])) + 1


def test_a_model_that_knows_nothing_is_told_so() -> None:
    from families import tiny

    from engram.cli.known import known
    from engram.errors import EngramError

    with pytest.raises(EngramError, match="answers none of the built-in questions"):
        known(tiny("gpt2"))


def main_exits_with(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (code, None if code == 0 else code)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, contextlib\nfrom engram.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'gradio'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert "engram demo" in result.stdout
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trace", "no-such-model-anywhere", "Paris is in", "--subject", "Paris"), "'mini'"),
        (("trace", "mini", "Paris is in", "--subject", "Pariss"), "Did you mean 'Paris'"),
        (("edit", "mini", "{} and {} are in", "--subject", "Paris", "--to", "Rome", "--out", "x"), "exactly one"),
        (("edit", "mini", "{} is in", "--subject", " ", "--to", "Rome", "--out", "x"), "subject is empty"),
        (("trace", "mini", "very " * 300 + "Paris is in", "--subject", "Paris"), "positions"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main_exits_with(2, *arguments)
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("Error:") == 1 and says in shown.partition("Error:")[2]
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("trace", "no-such-model-anywhere", "Paris is in", "--subject", "Paris", "--debug", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "ModelNotFound" in result.stderr
