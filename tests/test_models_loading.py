"""`load`: what it finds, and what it says when it finds nothing."""

import json
import shutil
from pathlib import Path

import pytest
import tolerance
import torch
from families import GOLDEN_MODEL, golden_lm, tiny_model

from engram.errors import ModelNotFound, SettingError, TokenizerError, UnsupportedModel
from engram.models import load


def test_a_folder_without_a_model_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="config.json"):
        load(tmp_path)
    with pytest.raises(ModelNotFound, match="no folder"):
        load(tmp_path / "missing")


def test_an_unknown_name_without_network_is_one_line() -> None:
    with pytest.raises(ModelNotFound) as caught:
        load("no-such-model-anywhere")
    assert "\n" not in str(caught.value)
    assert "'mini'" in str(caught.value)


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN_MODEL / name, tmp_path)
    with pytest.raises(TokenizerError, match="tokenizer"):
        load(tmp_path)


def test_pickled_weights_are_not_read_unless_asked(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN_MODEL / name, tmp_path)
    torch.save(golden_lm().model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="use_safetensors=False"):
        load(tmp_path)
    assert load(tmp_path, use_safetensors=False).fingerprint == golden_lm().fingerprint


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        load(tmp_path)


def test_a_config_of_no_known_kind_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"dtype": "float23"}, {"device": "cuda:99"}, {"device": "gpu"}])
def test_unknown_devices_and_dtypes_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(SettingError):
        load(GOLDEN_MODEL, **options)


def test_dtype_is_honoured_and_the_fingerprint_stays() -> None:
    half = load(GOLDEN_MODEL, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint == golden_lm().fingerprint


def test_the_fingerprint_tells_weights_apart() -> None:
    from families import golden_tokenizer, tiny

    from engram.models import LM

    model = tiny_model("gpt2")
    lm = LM(model, golden_tokenizer())
    assert lm.fingerprint == tiny("gpt2").fingerprint
    model.transformer.h[1].mlp.c_proj.weight.data += 0.01
    assert LM(model, golden_tokenizer()).fingerprint != lm.fingerprint


def test_offloaded_weights_run_and_keep_the_fingerprint(tmp_path: Path) -> None:
    placement = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    placement |= {f"transformer.h.{i}": "disk" if i > 3 else "cpu" for i in range(8)}
    lm = load(GOLDEN_MODEL, device_map=placement, offload_folder=str(tmp_path))
    assert any(p.device.type == "meta" for p in lm.model.parameters())
    assert lm.fingerprint == golden_lm().fingerprint
    assert lm.can_resume
    wanted = golden_lm().score("John Holzu comes from", ["New York", "Denver"])
    found = lm.score("John Holzu comes from", ["New York", "Denver"])
    torch.testing.assert_close(found, wanted, atol=tolerance.of_log_probability(lm), rtol=0)
