"""Random models of GPT-2's shapes, for benchmarks that time work and not knowledge."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.models import LM

SHAPES = {"small": (12, 768, 12), "medium": (24, 1024, 16), "xl": (48, 1600, 25)}
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TOKENIZER = DATA / "gpt2_tokenizer"


def build(shape: str, tokenizer: str | Path, device: str, dtype: str) -> LM:
    """Make a random model of a GPT-2 shape."""
    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
    with torch.device(device):
        model = GPT2LMHeadModel(config).to(getattr(torch, dtype))
    return LM(model, PreTrainedTokenizerFast.from_pretrained(tokenizer), name=f"random GPT-2 {shape}")
