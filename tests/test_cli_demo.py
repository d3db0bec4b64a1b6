"""The command line from outside: the demo, speed of the start, errors and exit codes."""

import json
import os
import subprocess
import sys
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


def test_the_demo_locates_edits_checks_and_takes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_exits_with(0, "demo", "--out", str(tmp_path / "demo"), "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["trace"]["says"] == "Seattle"
    assert result["trace"]["corrupted"] < 0.5 < result["trace"]["clean"]
    assert (tmp_path / "demo" / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert result["check"]["shares"]["prompt"] == {"ok": 1, "of": 1}
    assert result["check"]["shares"]["neighbor"]["ok"] > 0
    assert result["same_after_loading"]
    assert result["bit_identical_after_revert"]


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
    assert shown.startswith("Error:")
    assert says in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("trace", "no-such-model-anywhere", "Paris is in", "--subject", "Paris", "--debug", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "ModelNotFound" in result.stderr
