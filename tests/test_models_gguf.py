"""GGUF files: found, read, refused with a sentence, and written as plain folders with an edit in them."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import golden_tokenizer
from real import real_file, real_model

from edits import random_edit
from engram.cli import main
from engram.editing import FT, Edit, edit
from engram.errors import ModelError, ModelNotFound
from engram.facts import Fact
from engram.models import LM, load
from tiny_gguf import CHAT, rounded, write_gguf

PROMPT = "John Holzu comes from"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def lm(file: Path) -> LM:
    return load(file)


@pytest.fixture
def saved(lm: LM, tmp_path: Path) -> Path:
    return random_edit(lm, rank=1, size=0.05).save(tmp_path / "edit")


def plain_logits(folder: Path, prompt: str) -> torch.Tensor:
    """What plain transformers computes from a folder: [pos vocab]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")).logits[0]


def edited_logits(lm: LM, change: Edit, prompt: str) -> torch.Tensor:
    with torch.no_grad(), change.applied(lm):
        return lm.forward(lm.encode(prompt).ids)[0]


def test_a_file_is_read_and_says_that_it_was_dequantised(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="engram"):
        lm = load(file)
    assert [record.message for record in caplog.records] == [
        "tiny.gguf: weights that the file holds quantised were dequantised, to plain float32"
    ]
    assert lm.name == "tiny"
    assert lm.d_mlp == 64
    for name in (lm.mlp_out_name(1), "model.layers.2.self_attn.k_proj.weight", "model.embed_tokens.weight"):
        assert torch.equal(lm.model.get_parameter(name), torch.from_numpy(rounded(name)))
    assert lm.encode(PROMPT).ids[0].tolist() == golden_tokenizer()(PROMPT).input_ids
    assert lm.tokenizer.chat_template == CHAT.rstrip("\n")


def test_a_folder_with_one_file_is_that_file(file: Path, lm: LM) -> None:
    assert load(file.parent).fingerprint == lm.fingerprint


def test_a_folder_with_several_lists_them(file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(ModelNotFound, match=r"2 GGUF files: a\.gguf, b\.gguf\. Give one of them"):
        load(tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"There is no file .*none\.gguf"):
        load(tmp_path / "none.gguf")


@pytest.mark.parametrize("length", [0, 4, 30, 20_000, -100])
def test_a_damaged_file_is_named(file: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"cut\.gguf") as caught:
        load(tmp_path / "cut.gguf")
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    partial = write_gguf(tmp_path / "partial.gguf", without="layers.1.mlp.down")
    with pytest.raises(ModelError, match=r"partial\.gguf' lacks weights: model\.layers\.1\.mlp\.down"):
        load(partial)


def test_without_the_package_it_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram.models.gguf.find_spec", lambda name: None)
    assert importlib.util.find_spec("gguf")
    with pytest.raises(ModelError, match=r"pip install gguf \(in a checkout of Engram: pip install .*\[gguf\]"):
        load(file)


def test_an_edit_is_exported_as_a_plain_model(lm: LM, tmp_path: Path) -> None:
    change = random_edit(lm)
    change.export("hf", tmp_path / "hf", lm)
    found = plain_logits(tmp_path / "hf", PROMPT)
    torch.testing.assert_close(found, edited_logits(lm, change, PROMPT), rtol=1e-4, atol=1e-4)


def test_apply_and_revert_from_the_command_line(
    file: Path, lm: LM, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["apply", str(saved), str(file), "--out", str(tmp_path / "edited")],
        ["export", str(saved), str(file), "--format", "hf", "--out", str(tmp_path / "hf")],
        ["revert", str(tmp_path / "edited"), "--out", str(tmp_path / "base")],
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0, capsys.readouterr().err
    wanted = edited_logits(lm, Edit.load(saved), PROMPT)
    for folder in ("edited", "hf"):
        torch.testing.assert_close(plain_logits(tmp_path / folder, PROMPT), wanted, rtol=1e-4, atol=1e-4)
        assert load(tmp_path / folder).tokenizer.chat_template == lm.tokenizer.chat_template
    assert load(tmp_path / "base").fingerprint == lm.fingerprint


def test_the_command_line_says_it_once_and_draws_no_bars(file: Path, saved: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from engram.cli import main; main()"]
    command += ["export", str(saved), str(file), "--out", str(tmp_path / "lora")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("were dequantised") == 1
    assert "it/s" not in ran.stderr


@pytest.mark.real
def test_a_real_file_is_edited_and_kept(tmp_path: Path) -> None:
    lm = load(real_file("smollm2"))
    assert lm.fingerprint == real_model("smollm2").fingerprint
    assert lm.next_tokens("The capital of France is the city of", k=1)[0][0] == " Paris"
    change = edit(lm, Fact("Eiffel Tower", "The {} is in the city of", "Rome"), FT(layer=10, steps=4))
    change.export("hf", tmp_path / "hf", lm)
    prompt = change.facts[0].text
    wanted = edited_logits(lm, change, prompt)
    found = plain_logits(tmp_path / "hf", prompt)
    assert wanted[-1].argmax() == found[-1].argmax()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2)
    assert "<|im_start|>" in (tmp_path / "hf" / "chat_template.jinja").read_text(encoding="utf-8")
