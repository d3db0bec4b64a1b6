"""Quantised models: read, traced and edited beside the weights, or refused with a sentence; never wrong."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import golden_tokenizer, tiny, tiny_model
from torch import Tensor, nn

from edits import random_edit
from engram.editing import FT, ROME, Edit, LowRank, applied_rows, edit, guard
from engram.editing.fluency import relative_norm
from engram.errors import EditError
from engram.facts import Fact
from engram.locate import trace
from engram.models import LM, load

FACT = Fact("John Holzu", "{} comes from", "Denver", original="New York")


class Packed(nn.Linear):
    """A stand-in for 4-bit modules such as bitsandbytes': codes of one byte in a column, a scale per output."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "Packed":
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        weight = linear.weight.detach()
        made.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        codes = (weight / made.scale).round().add(128).to(torch.uint8)
        made.weight = nn.Parameter(codes.reshape(-1, 1), requires_grad=False)
        return made

    def numbers(self) -> Tensor:
        return (self.weight.reshape(self.out_features, self.in_features).float() - 128) * self.scale

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.numbers(), self.bias)


class Hidden(Packed):
    """A stand-in for GPTQ's and AWQ's modules: no `weight` at all."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "Packed":
        made: Any = super().of(linear)
        made.register_buffer("qweight", made.weight.data)
        del made.weight
        return made

    def numbers(self) -> Tensor:
        return (self.qweight.reshape(self.out_features, self.in_features).float() - 128) * self.scale


def quantised(kind: type[Packed], **changes: Any) -> LM:
    model = tiny_model("llama", max_position_embeddings=256, **changes)
    for block in model.model.layers:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                parent = block.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], kind.of(module))
    return LM(model, golden_tokenizer(), name="packed")


@cache
def packed(kind: type[Packed]) -> LM:
    return quantised(kind)


def torch_int8() -> LM:
    model = tiny_model("llama", max_position_embeddings=256)
    return LM(
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8), golden_tokenizer(), name="int8"
    )


def change_of(lm: LM) -> Edit:
    """A change of the third layer's matrix, as numbers [out in]."""
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(lm.d_model, 1, generator=draw), torch.randn(lm.d_mlp, 1, generator=draw)
    return Edit.of(lm, {lm.mlp_out_name(2): LowRank(0.3 * left, right)}, ())


@pytest.mark.parametrize("kind", [Packed, Hidden])
def test_sizes_are_those_of_the_numbers(kind: type[Packed]) -> None:
    lm = packed(kind)
    assert (lm.d_model, lm.d_mlp, lm.vocab_size) == (32, 48, 1024)
    assert lm.dtype == torch.float32
    assert lm.can_resume
    assert trace(lm, FACT, samples=2, window=1).clean > 0


@pytest.mark.parametrize("kind", [Packed, Hidden])
def test_an_edit_beside_the_codes_is_the_edit_of_the_numbers(kind: type[Packed]) -> None:
    lm = packed(kind)
    change = change_of(lm)
    ids = lm.encode(FACT.text).ids
    plain = tiny_model("llama", max_position_embeddings=256)
    with torch.no_grad():
        for block, other in zip(plain.model.layers, lm.blocks, strict=True):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(other.get_submodule(name).numbers())
        plain.model.layers[2].mlp.down_proj.weight.add_(change.updates[lm.mlp_out_name(2)].dense())
        wanted = plain(ids).logits
        with change.applied(lm):
            torch.testing.assert_close(lm.forward(ids), wanted, rtol=1e-4, atol=1e-4)
        with applied_rows(lm, [change]):
            torch.testing.assert_close(lm.forward(ids), wanted, rtol=1e-4, atol=1e-4)


def test_rome_finds_an_edit_and_its_health_is_measured_on_the_numbers() -> None:
    lm = packed(Packed)
    texts = ["John Holzu comes from New York.", "Ann lives in Rome.", "The city of Denver is old."]
    change = edit(lm, FACT, ROME(layer=2, corpus=texts, contexts=["{}"], steps=5), verify=False)
    name = lm.mlp_out_name(2)
    size = float(lm.mlp_out(2).numbers().norm())
    assert relative_norm(lm, change, name) == pytest.approx(change.norm(name) / size, rel=1e-4)
    assert guard(lm, change, held_out=texts).relative_norm[name] > 0


@pytest.mark.parametrize("kind", [Packed, Hidden])
def test_what_needs_the_numbers_is_refused_with_a_sentence(kind: type[Packed], tmp_path: Path) -> None:
    lm = packed(kind)
    change = change_of(lm)
    for attempt in (
        lambda: change.apply_(lm),
        lambda: change.export("hf", tmp_path / "hf", lm),
        lambda: edit(lm, FACT, FT(layer=2)),
    ):
        with pytest.raises(EditError, match=rf"is quantised \({kind.__name__}\).*edit\.applied\(lm\)"):
            attempt()
    assert not (tmp_path / "hf").exists()
    change.export("peft", tmp_path / "lora", lm)


def test_codes_count_in_the_fingerprint() -> None:
    assert packed(Packed).fingerprint != tiny("llama").fingerprint
    for kind in (Packed, Hidden):
        assert packed(kind).fingerprint == quantised(kind).fingerprint
        other = quantised(kind)
        state = other.model.state_dict()
        state[f"model.layers.1.mlp.down_proj.{'weight' if kind is Packed else 'qweight'}"].add_(1)
        assert packed(kind).fingerprint != LM(other.model, golden_tokenizer()).fingerprint


@pytest.mark.filterwarnings("ignore")
def test_torch_int8_is_read_and_says_that_gradients_stop() -> None:
    lm = torch_int8()
    assert (lm.d_mlp, lm.vocab_size) == (48, 1024)
    change = change_of(lm)
    before, size = lm.mlp_out(2).weight().dequantize(), tiny("llama").mlp_out(2).weight
    torch.testing.assert_close(before, size, rtol=0.05, atol=0.05)
    assert relative_norm(lm, change, lm.mlp_out_name(2)) == pytest.approx(
        change.norm(lm.mlp_out_name(2)) / float(before.norm()), rel=0.02
    )
    ids = lm.encode(FACT.text).ids
    with torch.no_grad():
        unedited = lm.forward(ids)
        with change.applied(lm):
            assert not torch.allclose(lm.forward(ids), unedited)
    assert lm.fingerprint == torch_int8().fingerprint
    for method in (ROME(layer=2, corpus=["Some text."]), FT(layer=2)):
        with pytest.raises(EditError, match="is quantised"):
            edit(lm, FACT, method)


def test_a_model_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(Path(__file__).parent / "data" / "golden_model")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("The model is quantized with gguf and is not serializable.\nMore.")

    monkeypatch.setattr(lm.model, "save_pretrained", refuse)
    with pytest.raises(EditError, match=r"cannot be written as a model folder: .* not serializable\.$"):
        random_edit(lm).export("hf", tmp_path / "hf", lm)
