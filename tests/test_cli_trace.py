"""`engram trace`: one prompt, many facts, and what is said about wrong input."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import GOLDEN_MODEL, golden_lm

from engram import locate
from engram.cli import main
from engram.locate import subject_sigma

PROMPT, SUBJECT = "The maker of Kara 3000 is", "Kara 3000"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as exited:
        main(["trace", *arguments])
    said = capsys.readouterr()
    assert exited.value.code == code, said.err
    return said.out, said.err


def test_one_prompt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot, folder = tmp_path / "trace.png", tmp_path / "trace"
    options = ["--subject", SUBJECT, "--window", "3", "--samples", "2", "--noise", "0.25"]
    text, _ = run(capsys, str(GOLDEN_MODEL), PROMPT, *options, "--plot", str(plot), "--out", str(folder))
    assert "Kara*" in text or "K" in text
    assert "indirect effect" in text
    assert plot.exists()
    assert (folder / "trace.safetensors").exists()
    text, _ = run(capsys, str(GOLDEN_MODEL), PROMPT, *options, "--site", "mlp", "--tokens", "subject_last", "--json")
    found = json.loads(text)
    assert list(found["scores"]) == ["mlp"]
    assert found["positions"] == [found["subject_range"][1] - 1]
    text, _ = run(capsys, str(GOLDEN_MODEL), PROMPT, *options, "--explain")
    assert "← last subject token" in text


def test_many_facts_with_broken_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = {"subject": SUBJECT, "prompt": PROMPT, "template": "The maker of {} is", "attribute": "S", "prediction": "S"}
    file = tmp_path / "facts.jsonl"
    broken = {**good, "prompt": "Nothing about it"}
    file.write_text("\n".join(('{"subject": ', json.dumps(broken), json.dumps(good))) + "\n")
    options = ["--facts", str(file), "--noise", "0.25", "--samples", "2", "--window", "3", "--site", "state"]
    text, said = run(capsys, str(GOLDEN_MODEL), *options, "--out", str(tmp_path / "run"), "--json")
    assert "2 record(s) left out" in said
    assert "line 1 " in said
    assert "broken JSON" in said
    assert "line 2 " in said
    assert json.loads(text)["count"] == 1
    assert (tmp_path / "run" / "results.jsonl").exists()
    picture = tmp_path / "bars.svg"
    run(capsys, str(GOLDEN_MODEL), *options, "--severed", "compare", "--plot", str(picture))
    assert picture.exists()


def test_sigma_is_measured_on_the_facts_that_are_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "facts.csv"
    file.write_text("subject,prompt\nKara 3000,{} is\nJohn Holzu,{} is\nKara 3000,{} was\n")
    options = ["--subject", SUBJECT, "--samples", "2", "--site", "state", "--json"]
    text, _ = run(capsys, str(GOLDEN_MODEL), PROMPT, *options, "--noise", "2sigma", "--sigma-facts", str(file))
    found = json.loads(text)
    assert found["noise"]["amount"] == pytest.approx(2 * subject_sigma(golden_lm(), ["Kara 3000", "John Holzu"]))
    _, said = run(capsys, str(GOLDEN_MODEL), PROMPT, *options, "--noise", "0.1", "--sigma-facts", str(file), code=2)
    assert "multiples of σ" in said


def test_ctrl_c_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(locate, "trace_many", interrupted)
    folder = tmp_path / "run"
    for options, says in ((["--out", str(folder)], "Finished facts are kept"), ([], "Nothing was kept: give --out")):
        _, said = run(capsys, str(GOLDEN_MODEL), "--facts", "known", *options, code=130)
        assert says in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PROMPT, "--subject", "Kara 300O"), "Did you mean 'Kara 3000'"),
        ((PROMPT,), "--subject"),
        (("", "--subject", "x"), "prompt is empty"),
        ((PROMPT, "--subject", SUBJECT, "--occurrence", "2"), "1 time"),
        ((PROMPT, "--subject", SUBJECT, "--noise", "gausian:3"), "Did you mean 'gaussian'"),
        ((PROMPT, "--subject", SUBJECT, "--site", "mpl"), "Did you mean 'mlp'"),
        ((PROMPT, "--subject", SUBJECT, "--facts", "known"), "not both"),
        (("--facts", "/nowhere/facts.json"), "facts.json"),
    ],
)
def test_wrong_input_is_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    _, said = run(capsys, str(GOLDEN_MODEL), *arguments, code=2)
    assert message in " ".join(said.split())


def test_a_repeated_subject_is_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    twice = "Kara 3000 and Kara 3000"
    _, said = run(capsys, str(GOLDEN_MODEL), twice, "--subject", SUBJECT, "--explain")
    assert "occurs 2 times" in said
