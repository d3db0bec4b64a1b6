"""A model of a family that nobody has seen: say where its parts are, and everything works.

    python examples/new_layout.py

The model below is random, so it knows nothing; the point is that tracing and editing need four paths, not a fork.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import engram
from engram.errors import UnsupportedModel
from engram.mini.text import statistics_text


class PondConfig(PretrainedConfig):
    """Sizes under the names that transformers' configs use."""

    model_type = "pond"

    def __init__(self, *, vocab_size: int = 1024, **others: Any) -> None:
        super().__init__(**others)
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 64, 4, 4
        self.vocab_size = vocab_size


class Ripple(nn.Module):
    """A block: mixing over positions, then a memory per position, side by side on one norm."""

    def __init__(self, config: PondConfig, layer: int) -> None:
        super().__init__()
        size, self.heads, self.layer = config.hidden_size, config.num_attention_heads, layer
        self.calm = nn.LayerNorm(size)
        self.look, self.fetch = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.ask, self.tell = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, hidden: Tensor, *, allowed: Tensor, cache: Cache | None) -> Tensor:
        """Give the next block its states; keys and values of earlier positions come from the cache."""
        calm = self.calm(hidden)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.look(calm).chunk(3, -1)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        mixed = self.fetch(mixed.transpose(1, 2).flatten(-2))
        return hidden + mixed + self.tell(nn.functional.gelu(self.ask(calm)))


class Pond(PreTrainedModel):
    """A decoder without positions: the causal mask is all the order it sees."""

    config_class = PondConfig

    def __init__(self, config: PondConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.ripples = nn.ModuleList(Ripple(config, i) for i in range(config.num_hidden_layers))
        self.out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> CausalLMOutput:
        """Take what every decoder in transformers takes, and give logits."""
        hidden = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        new = hidden.shape[1]
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        allowed = torch.ones(new, before + new, dtype=torch.bool, device=hidden.device).tril(before)[None, None]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None, None, :].bool()
        for ripple in self.ripples:
            hidden = ripple(hidden, allowed=allowed, cache=past_key_values)
        return CausalLMOutput(logits=self.out(hidden))


torch.manual_seed(0)
tokenizer = engram.load("mini").tokenizer
model = Pond(PondConfig(vocab_size=len(tokenizer), initializer_range=0.1))

# Names that say nothing are not guessed at.
try:
    engram.LM(model, tokenizer)
except UnsupportedModel as error:
    print(f"without a layout: {error}\n")

# Four paths. They are proved by a pass over four tokens before anything else happens.
layout = engram.Layout(blocks="ripples", attn_out="fetch", mlp_out="tell", embed="words")
lm = engram.LM(model, tokenizer, name="pond", layout=layout)
print(lm)
print(f"can be run from the middle: {lm.can_resume}")

fact = engram.Fact("Space Needle", "The {} is located in the city of", "Rome")
trace = engram.trace(lm, fact, samples=3)
print(f"traced: {tuple(trace.state.shape)} (tokens, layers)")

# ROME needs text for key statistics; mini has its own, any other model is told which.
corpus = list(statistics_text(0, tokens=20_000))
edit = engram.edit(lm, fact, corpus=corpus)
score = float(lm.score(fact.text, ["Rome"]))
with edit.applied(lm):
    edited = float(lm.score(fact.text, ["Rome"]))
    print(f"mean token NLL of 'Rome': {score:.2f} -> {edited:.2f}")
assert edited < score
