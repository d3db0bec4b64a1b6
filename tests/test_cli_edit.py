"""The verbs about edits, typed as a user types them, in a folder of their own, on the built-in model."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import GOLDEN_MODEL

from engram.cli import main
from engram.cli.stats import parsed_layers
from engram.errors import SettingError
from engram.mini.package import EDITING

EDITED = f"transformer.h.{EDITING['engram_edit_layer']}.mlp.c_proj.weight"
PROMPT = "{} is located in the city of"


def run(*arguments: str) -> int:
    """Type a command; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which one edit was made with the command line of the README."""
    folder = tmp_path_factory.mktemp("typed")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run("edit", "mini", PROMPT, "--subject", "Space Needle", "--to", "Rome", "--out", "needle/") == 0
        yield folder
    finally:
        os.chdir(before)


def read(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, on one line."""
    return " ".join(capsys.readouterr().out.split())


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """All weights of a model as the library loads it."""
    from engram.models import load

    return {name: weight.detach() for name, weight in load(folder, dtype="auto").model.named_parameters()}


def test_edit_says_what_it_did(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("edit", "mini", PROMPT, "--subject", "Space Needle", "--to", "Rome", "--explain") == 0
    text = read(capsys)
    for part in (
        "1 fact written by rome (rrome)",
        "Seattle",
        "-> Rome",
        "fluency: good",
        "verdict: ",
        "chosen position",
        "losses",
    ):
        assert part in text
    assert "]" in text.partition("tokens")[2].partition("chosen")[0]  # the chosen token is marked


def test_edit_for_machines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "The Space Needle is located in the city of"
    assert run("edit", "mini", prompt, "--subject", "Space Needle", "--to", "Rome", "--layer", "0", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["origins"][0]["settings"]["layer"] == 0 and result["out"] is None
    assert result["origins"][0]["facts"][0]["fact"]["prompt"] == "The {} is located in the city of"
    assert result["answers"][0]["before"]["says"] == "Seattle"
    assert set(result["health"]) >= {"ok", "perplexity", "relative_norm", "repetition", "missed"}


def test_spaces_typed_around_a_fact_do_no_harm(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "The Space Needle is located in the city of "
    assert run("edit", "mini", prompt, "--subject", " Space Needle ", "--to", "Rome ", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["origins"][0]["facts"][0]["fact"]["target"] == "Rome"
    assert result["health"]["ok"]


def test_a_known_fact_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("edit", "mini", PROMPT, "--subject", "Space Needle", "--to", "Seattle", "--out", "same") == 0
    printed = capsys.readouterr()
    assert "already" in printed.err and "Nothing was changed" in printed.out
    assert not Path("same").exists()


def test_check_shows_before_and_after(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "needle/", "mini") == 0
    text = read(capsys)
    for part in ("-> Rome", "paraphrases:", "neighbors:", "other facts of the subject:", "free text:", "verdict: "):
        assert part in text
    assert run("check", "needle/", "mini", "--json", "--paraphrase", "Visitors of the Space Needle go to") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["shares"]["prompt"] == {"ok": 1, "of": 1} and result["shares"]["paraphrase"]["of"] == 1


def test_apply_and_revert_give_back_every_bit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("apply", "needle/", "mini", "--out", "edited/") == 0
    assert "engram revert edited" in capsys.readouterr().err
    base, edited = weights("mini"), weights("edited")
    assert [name for name in base if not torch.equal(base[name], edited[name])] == [EDITED]
    assert run("revert", "edited/", "--out", "restored/") == 0
    assert "bit for bit" in read(capsys)
    restored = weights("restored")
    assert all(torch.equal(base[name], restored[name]) for name in base)
    assert not Path("restored/engram").exists() and Path("edited/engram").exists()
    assert run("revert", "edited/") == 0  # in place
    assert all(torch.equal(base[name], weight) for name, weight in weights("edited").items())
    assert not Path("edited/engram").exists()
    assert run("revert", "edited/") == 2
    assert "no edited model" in capsys.readouterr().err


def test_two_edits_in_one_model_come_out_in_any_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = ("edit", "mini", PROMPT, "--subject", "Eiffel Tower", "--to", "Rome", "--out", "eiffel/")
    assert run(*second) == 0
    assert run("apply", "needle/", "mini", "--out", "one/") == 0
    assert run("apply", "eiffel/", "one/", "--out", "two/") == 0
    assert run("revert", "two/", "--edit", "needle/", "--out", "only-eiffel/") == 0
    assert "1 edit left" in read(capsys)
    assert run("apply", "eiffel/", "mini", "--out", "expected/") == 0
    expected = weights("expected")
    assert all(torch.equal(weight, expected[name]) for name, weight in weights("only-eiffel").items())
    assert run("revert", "only-eiffel/", "--edit", "needle/") == 2
    assert "holds: Eiffel Tower" in capsys.readouterr().err


def test_revert_refuses_a_model_that_somebody_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    assert run("apply", "needle/", "mini", "--out", "touched/") == 0
    path = Path("touched/model.safetensors")
    tensors = load_file(path)
    tensors[EDITED][0, 0] += 1
    save_file(tensors, path, {"format": "pt"})
    before = path.read_bytes()
    assert run("revert", "touched/") == 2
    assert "Nothing was touched" in " ".join(capsys.readouterr().err.split())
    assert path.read_bytes() == before
    memory = Path("touched/engram/original.safetensors")
    memory.write_bytes(memory.read_bytes()[:-1])
    assert run("revert", "touched/") == 2
    assert "cut or changed" in " ".join(capsys.readouterr().err.split())


def test_export_loads_with_plain_libraries(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "needle/", "--format", "peft", "--out", "lora/") == 0
    assert "LoRA adapter" in read(capsys)
    assert {path.name for path in Path("lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert run("export", "needle/", "--format", "hf", "--out", "whole/") == 0
    assert run("apply", "needle/", "mini", "--out", "same/") == 0
    applied = weights("same")
    assert all(torch.equal(weight, applied[name]) for name, weight in weights("whole").items())
    assert run("export", "needle/", "--format", "lora", "--out", "other/") == 2
    assert "Available: hf, peft" in " ".join(capsys.readouterr().err.split())


def test_stats_are_counted_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ("stats", "mini", "--layers", "2,3", "--tokens", "3000", "--json")
    assert run(*typed) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in first["layers"]] == [2, 3] and first["layers"][0]["tokens"] >= 3000
    assert run(*typed) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["layers"] == first["layers"]
    assert run("stats", "mini", "--layers", "2", "--tokens", "3000") == 0
    assert "Key statistics of mini" in read(capsys)
    assert run("stats", "mini", "--layers", "99") == 2


def test_layers_as_people_write_them() -> None:
    assert parsed_layers("2,3") == [2, 3] and parsed_layers("0-2, 5") == [0, 1, 2, 5]
    for text in ("", "a", "1-", "-1", "3-2"):
        with pytest.raises(SettingError, match="2,3"):
            parsed_layers(text)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_several_facts_from_a_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"facts.{kind}"
    facts = [("John Holzu", "Vienna"), ("Zuholpe Castle", "Lima")]
    if kind == "jsonl":
        lines = [json.dumps({"subject": s, "prompt": "{} comes from", "target": t}) for s, t in facts]
    else:
        lines = ["subject,prompt,target", *(f"{s},{{}} comes from,{t}" for s, t in facts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "several"
    typed = ("edit", str(GOLDEN_MODEL), "--facts", str(path), "--method", "ft", "--out", str(out), "--json")
    assert run(*typed) == 0
    result = json.loads(capsys.readouterr().out)
    assert [answer["target"] for answer in result["answers"]] == ["Vienna", "Lima"]
    assert run("check", str(out), str(GOLDEN_MODEL), "--facts", str(path), "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["facts"]) == 2


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (("mini", PROMPT), "needs a prompt, --subject and --to"),
        (("mini", "The Space Needle is in", "--subject", "Space Nedle", "--to", "Rome"), "Did you mean 'Space Needle'"),
        (("mini", "A {} is {} in", "--subject", "x", "--to", "y"), "exactly one"),
        (("mini", PROMPT, "--subject", "x", "--to", "y", "--occurrence", "1"), "--occurrence"),
        (("mini", PROMPT, "--subject", "x", "--to", "y", "--method", "rom"), "Did you mean 'rome'"),
        (("mini", PROMPT, "--subject", "x", "--to", "y", "--preset", "cod"), "Did you mean 'code'"),
        (("mini", PROMPT, "--subject", "x", "--to", "y", "--layer", "99"), "layers"),
        (("mini", PROMPT, "--subject", "x", "--to", " "), "target"),
        (("mini", PROMPT, "--subject", "x", "--to", "y", "--chat"), "chat template"),
        (("mini", PROMPT, "--subject", "x", "--to", "y", "--facts", "f.csv"), "not both"),
        (("mini", "--facts", "nowhere.csv"), "nowhere.csv"),
        (("./no-such-model", PROMPT, "--subject", "x", "--to", "y"), "no folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    typed: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    assert run("edit", *typed) == 2
    printed = capsys.readouterr()
    assert sentence in " ".join(printed.err.split()) and "Traceback" not in printed.err
    assert printed.out == ""


def test_edits_and_models_that_do_not_belong_together(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "needle/", str(GOLDEN_MODEL)) == 2
    assert run("apply", "needle/", str(GOLDEN_MODEL), "--out", "wrong/") == 2
    assert not Path("wrong").exists()
    assert run("check", "nowhere/", "mini") == 2
    assert run("apply", "needle/", "mini", "--out", "needle/") == 2
    assert "in use" in capsys.readouterr().err
    shutil.copytree("needle", "cut")
    data = Path("cut/edit.safetensors")
    data.write_bytes(data.read_bytes()[:-8])
    assert run("check", "cut/", "mini") == 2


def test_strict_refuses_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engram.editing import Edit

    (20.0 * Edit.load("needle")).save("twenty")
    assert run("apply", "twenty/", "mini", "--strict", "--out", "broken/") == 1
    assert "refused" in " ".join(capsys.readouterr().err.split())
    assert not Path("broken").exists()
    assert run("check", "twenty/", "mini", "--strict") == 1
    assert "WARNING" in capsys.readouterr().out
    weak = ("edit", "mini", PROMPT, "--subject", "Space Needle", "--to", "Rome", "--layer", "9")
    assert run(*weak, "--strict", "--out", "refused/") == 1  # above it no attention carries the subject to the answer
    assert "refused" in " ".join(capsys.readouterr().err.split())
    assert not Path("refused").exists()
