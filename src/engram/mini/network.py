"""The GPT-2 forward pass of training: the same numbers as transformers', with one attention mask per layer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import GPT2LMHeadModel


def forward(
    model: GPT2LMHeadModel, tokens: Int[Tensor, "batch pos"], biases: Sequence[Float[Tensor, "batch 1 pos pos"]]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of `tokens`, where `biases[layer]` is added to that layer's attention scores (0 allowed, -inf forbidden).

    Attention is written out because the fused kernels are slower than two small products for rows this short.
    """
    body: Any = model.transformer
    batch, length = tokens.shape
    hidden = body.wte(tokens) + body.wpe(torch.arange(length))
    for block, bias in zip(body.h, biases, strict=True):
        joined = block.attn.c_attn(block.ln_1(hidden))
        query, key, value = joined.view(batch, length, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        mixed = torch.softmax(scores + bias, dim=-1, dtype=torch.float32).to(value.dtype) @ value
        hidden = hidden + block.attn.c_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        inner = functional.gelu(block.mlp.c_fc(block.ln_2(hidden)), approximate="tanh")
        hidden = hidden + block.mlp.c_proj(inner)
    return model.lm_head(body.ln_f(hidden))
