"""Tiny random models of every supported family, built from their configs, with the golden model's tokenizer."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

GOLDEN_MODEL = Path(__file__).parent / "data" / "golden_model"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 1024,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}  # grouped-query attention
SLIDING = {**GROUPED, "sliding_window": 4}  # shorter than the prompts that tests use
OLD = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 1024}

FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4, "vocab_size": 1024},
    "cohere": GROUPED,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 1024},
    "gemma": GROUPED,
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "glm4": GROUPED,
    "gpt2": OLD,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 1024,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 4,
    },
    "gpt_neox": SIZES,
    "gptj": {**OLD, "rotary_dim": 4},
    "granite": {**GROUPED, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "llama": GROUPED,
    "mistral": SLIDING,
    "olmo2": SIZES,
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "vocab_size": 1024,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "phi": SIZES,
    "phi3": SIZES,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "stablelm": SIZES,
    "starcoder2": GROUPED,
}


def tiny_model(family: str, **changes: Any) -> Any:
    """A random model of a family, made from its config: same weights every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family, **{**FAMILIES[family], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():  # away from the near-uniform start, so that outputs depend on inputs
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@cache
def golden_tokenizer() -> Any:
    """The tokenizer of the golden model: byte-level BPE with 1,024 entries."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(GOLDEN_MODEL)


@cache
def tiny(family: str) -> Any:
    """A tiny LM of a family. Shared by tests: leave it unchanged."""
    from engram.models import LM

    return LM(tiny_model(family), golden_tokenizer(), name=f"tiny-{family}")


@cache
def golden_lm() -> Any:
    """The golden model as an LM. Shared by tests: leave it unchanged."""
    from engram.models import load

    return load(GOLDEN_MODEL)
