"""The verbs evaluate and report: tables, JSON, exit codes, and what Ctrl-C says."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import GOLDEN_MODEL

from engram import evaluation
from engram.cli import main
from engram.cli.report import chosen
from engram.errors import SettingError


@pytest.fixture(scope="module")
def data(counterfact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = json.loads(counterfact.read_text(encoding="utf-8"))[:2]
    wrong = {**records[0], "case_id": 99}
    wrong["requested_rewrite"] = {**wrong["requested_rewrite"], "prompt": "Nobody is in"}
    path = tmp_path_factory.mktemp("data") / "records.json"
    path.write_text(json.dumps([*records, wrong]), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_evaluate_and_report(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("evaluate", GOLDEN_MODEL, data, "--method", "none", "--no-generate", "--out", tmp_path / "none")
    code, out, err = run(capsys, *command)
    assert (code, "ES" in out, "1 record(s) left out" in err) == (0, True, True)
    assert "line 1 (record 3)" in err
    code, out, _ = run(capsys, *command, "--json")
    result = json.loads(out)
    assert (code, result["runs"][0]["cases"], result["out"]) == (0, 2, str(tmp_path / "none"))
    code, out, _ = run(capsys, "report", tmp_path / "none", "--format", "markdown", "--columns", "ES,NS")
    assert (code, out.startswith("|  | n | ES | NS |")) == (0, True)
    code, again, _ = run(capsys, "report", tmp_path / "none", "--format", "markdown", "--columns", "es, Ns")
    assert (code, again) == (0, out)
    code, out, _ = run(capsys, "report", tmp_path / "none", "--json")
    assert json.loads(out)["runs"][0]["metrics"] == result["runs"][0]["metrics"]
    code, _, _ = run(capsys, "report", tmp_path / "none", "--figure", tmp_path / "bars.svg")
    assert (code, (tmp_path / "bars.svg").exists()) == (0, True)


def test_typed_columns_may_be_printed_names_even_with_a_comma() -> None:
    metrics = {"ES": 1.0, "said": 1.0, "said_paraphrase": 0.0}
    report = evaluation.Report([evaluation.Run("a", {}, [{"id": "1", "metrics": metrics}])])
    assert chosen("says it, paraphrased,Says it,es", report) == ["said_paraphrase", "said", "ES"]
    with pytest.raises(SettingError, match="no column 'Says'. Did you mean 'Says it'"):
        chosen("Says", report)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report", "absent"), "no run folder"),
        (("evaluate", GOLDEN_MODEL, "absent.json", "--method", "ft"), "There is no file"),
        (("evaluate", GOLDEN_MODEL, "mni", "--method", "ft"), "Did you mean 'mini'"),
        (("evaluate", GOLDEN_MODEL, "mini", "--engine", "rai"), "Did you mean 'ray'"),
        (("evaluate", GOLDEN_MODEL, "DATA", "--method", "roma"), "Did you mean 'rome'"),
        (("evaluate", GOLDEN_MODEL, "DATA", "--method", "ft", "--token", "last"), "no setting 'token'"),
        (("sweep", GOLDEN_MODEL, "DATA", "--layers", "1-x"), "no list of layers"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str | Path, ...], says: str
) -> None:
    code, _, err = run(capsys, *(data if a == "DATA" else a for a in arguments))
    assert code == 2
    assert says in err.replace("\n", " ")


def test_ctrl_c_says_how_to_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    code, _, err = run(capsys, "evaluate", GOLDEN_MODEL, data, "--method", "none", "--out", tmp_path / "run")
    assert code == 130
    assert "start the same command again" in err.replace("\n", " ")
