"""Exports: plain peft and plain transformers load them and say the same as Engram."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tolerance
import torch
from families import golden_tokenizer, tiny, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from edits import DATA, random_edit, unchanged, weights_of
from engram.editing import Dense, Edit, LowRank
from engram.errors import EditError, EditMismatch, SettingError
from engram.models import LM, load
from engram.models.loading import MINI

peft = pytest.importorskip("peft", reason="the export for peft is checked with peft itself: pip install peft")


def ids(lm: LM) -> torch.Tensor:
    return lm.encode("Ann lives in the city of").ids


def dense(edit: Edit, lm: LM) -> Edit:
    return Edit.of(lm, {name: Dense(update.dense()) for name, update in edit.updates.items()}, edit.origins)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "opt", "bloom"])
@pytest.mark.parametrize("kind", ["rank 2", "two layers", "bias", "dense"])
def test_plain_peft_gives_the_same_logits(family: str, kind: str, tmp_path: Path) -> None:
    lm = LM(tiny_model(family), golden_tokenizer())
    edit = random_edit(lm, rank=2)
    if kind == "two layers":
        edit = edit + random_edit(lm, 3, seed=5, rank=1)
    if kind == "bias":
        if getattr(lm.mlp_out(1), "bias", None) is None:
            pytest.skip(f"{family} has no biases there")
        edit = edit + random_edit(lm, 2, seed=6, bias=True)
    if kind == "dense":
        edit = dense(edit, lm)
    edit.export("peft", tmp_path / "lora")
    with edit.applied(lm), torch.no_grad():
        wanted = lm.forward(ids(lm))
    model = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "lora").eval()
    with torch.no_grad():
        given = model(ids(lm)).logits
    assert (wanted - lm.model(ids(lm)).logits).abs().max() > 0.01
    assert torch.allclose(given, wanted, atol=2 * tolerance.of_logits(lm))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Model has `tie_word_embeddings=True`")
def test_an_unembedding_is_the_right_way_round_in_an_adapter(tmp_path: Path) -> None:
    """GPT-2 keeps its projections as [in, out] and its unembedding as [out, in]."""
    lm = LM(tiny_model("gpt2", tie_word_embeddings=False), golden_tokenizer())
    draw = torch.Generator().manual_seed(1)
    factors = torch.randn(1024, 1, generator=draw), torch.randn(32, 1, generator=draw)
    edit = Edit.of(lm, {"lm_head.weight": LowRank(*factors)}) + random_edit(lm)
    edit.export("peft", tmp_path / "lora")
    with edit.applied(lm), torch.no_grad():
        wanted = lm.forward(ids(lm))
    base = tiny_model("gpt2", tie_word_embeddings=False)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    with torch.no_grad():
        assert torch.allclose(model(ids(lm)).logits, wanted, atol=4 * tolerance.of_logits(lm))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_plain_transformers_loads_the_edited_model(family: str, tmp_path: Path) -> None:
    lm = LM(tiny_model(family), golden_tokenizer())
    before, edit = weights_of(lm), random_edit(lm)
    edit.export("hf", tmp_path / "edited", lm)
    assert unchanged(lm, before)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert AutoTokenizer.from_pretrained(tmp_path / "edited")("Ann")["input_ids"] == lm.tokenizer("Ann")["input_ids"]
    edit.apply_(lm)
    with torch.no_grad():
        assert torch.allclose(model(ids(lm)).logits, lm.forward(ids(lm)), atol=tolerance.of_logits(lm))


def test_an_adapter_names_the_base_that_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def base(name: str, folder: str) -> str:
        adapter = replace(random_edit(tiny("gpt2")), model=name).export("peft", tmp_path / folder)
        return json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]

    monkeypatch.chdir(DATA)
    assert base("mini", "a") == str(MINI)
    assert base("golden_model", "b") == str((DATA / "golden_model").resolve())
    assert base("gpt2-xl", "c") == "gpt2-xl"


def test_plain_peft_finds_a_local_base_by_itself(tmp_path: Path) -> None:
    lm = load(DATA / "golden_model", device="cpu")
    edit = random_edit(lm)
    edit.export("peft", tmp_path / "lora")
    with edit.applied(lm), torch.no_grad():
        wanted = lm.forward(ids(lm))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids(lm)).logits, wanted, rtol=1e-4, atol=1e-4)


def test_exports_that_cannot_be_made_say_so(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    edit = random_edit(lm)
    with pytest.raises(SettingError, match="Did you mean 'peft'"):
        edit.export("pft", tmp_path / "x")
    with pytest.raises(EditError, match="needs the model"):
        edit.export("hf", tmp_path / "x")
    with pytest.raises(EditMismatch):
        edit.export("hf", tmp_path / "x", tiny("llama"))
    with pytest.raises(EditError, match="changes nothing"):
        Edit.of(lm, {}, ()).export("peft", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(EditError, match="not empty"):
        edit.export("peft", tmp_path / "full")
    assert not (tmp_path / "x").exists() and (tmp_path / "full" / "mine").read_text() == "kept"
