"""Decoders that keep nothing of what they read: a plain one of thirty lines, and Mamba; given by four paths."""

from typing import Any

import torch
from families import golden_tokenizer
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from engram.models import LM, Layout

PLAIN = Layout(blocks="blocks", attn_out="attn.out", mlp_out="mlp.down", embed="wte")
MAMBA = Layout(
    blocks="backbone.layers", attn_out="mixer.out_proj", mlp_out="mixer.out_proj", embed="backbone.embeddings"
)


class Attention(nn.Module):
    """Causal attention with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1), is_causal=True))


class MLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and MLP, each added to the state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width), MLP(width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(hidden_states)
        return hidden_states + self.mlp(hidden_states)


class Plain(nn.Module):
    """A decoder with learned positions; `forward` swallows masks, positions and caches."""

    def __init__(self, width: int = 32, layers: int = 4, vocabulary: int = 1024, positions: int = 64) -> None:
        super().__init__()
        sizes: Any = {"hidden_size": width, "num_hidden_layers": layers, "max_position_embeddings": positions}
        self.config = PretrainedConfig(**sizes)
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return CausalLMOutput(logits=self.head(x))


class Strict(Plain):
    """The same, but its `forward` takes token ids and nothing else."""

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:  # type: ignore[override]
        return super().forward(input_ids)


def uncached(name: str) -> LM:
    """One of these models, random, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "mamba":
            config = MambaConfig(vocab_size=1024, hidden_size=32, num_hidden_layers=4, state_size=4)
            return LM(MambaForCausalLM(config), golden_tokenizer(), name=name, layout=MAMBA)
        return LM({"plain": Plain, "strict": Strict}[name](), golden_tokenizer(), name=name, layout=PLAIN)
