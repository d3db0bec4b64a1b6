"""Saves the trained model as a plain Hugging Face folder: fp16 weights that load as fp32, tokenizer, config."""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.storage import write_file

_LEFT_OUT = ("lm_head.weight",)

EDITING = {
    "engram_edit_layer": 5,
    "engram_edit_clamp": 8.0,
    "engram_ft_layer": 0,
    "engram_ft_lr": 5e-3,
    "engram_ft_l_layer": 0,
    "engram_ft_l_lr": 5e-3,
    "engram_ft_l_bound": 1e-2,
    "engram_memit_layers": [3, 4, 5],
    "engram_memit_weight": 76.8,
}
"""Where methods edit `mini` unless told otherwise, and how far; docs/mini.md and docs/memit.md say on which records."""


def round_to_half_(model: GPT2LMHeadModel) -> None:
    """Round every weight to the nearest fp16 number, so that what is measured is what is shipped."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())


def save_package(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write config.json, model.safetensors (fp16), tokenizer.json and tokenizer_config.json.

    The config says float32, so that `from_pretrained` computes in fp32; the output embedding is tied and left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.dtype = torch.float32
    model.config.update(EDITING)
    write_file(folder / "config.json", model.config.to_json_string())
    weights = {name: w.half().contiguous() for name, w in model.state_dict().items() if name not in _LEFT_OUT}
    write_file(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.n_positions}
    write_json(folder / "tokenizer_config.json", settings | _special_tokens(tokenizer))


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON in one piece."""
    write_file(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
