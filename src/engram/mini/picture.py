"""Where `mini` recalls facts: a plain causal tracing of many facts, for the model card.

Notable: this is deliberately simple and independent of `engram.locate`: one batch holds every (token, layer) restoration
times every noise sample, and the forward pass is written out. ROME paper, section 2; the average indirect effect (AIE).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.mini.text import fill
from engram.mini.world import WorldFact

GROUPS = ("first subject", "middle subject", "last subject", "first later", "further", "last prompt")
_TOKENS_PER_BATCH = 16384


@dataclass(frozen=True)
class Probe:
    """A tokenized prompt, its subject tokens `[first, last]` and the first token of the object."""

    prompt: str
    tokens: Int[Tensor, "pos"]
    first: int
    last: int
    answer: int


@dataclass(frozen=True)
class Restored:
    """Effects of restoring one kind of site: `effect[t, l]` for prompt token t and (window centre) layer l."""

    clean: float
    corrupted: float
    effect: Float[Tensor, "pos layer"]


@dataclass(frozen=True)
class Sites:
    """Values of every layer in the clean run."""

    state: list[Float[Tensor, "pos d_model"]]
    mlp: list[Float[Tensor, "pos d_model"]]
    attn: list[Float[Tensor, "pos d_model"]]


@dataclass(frozen=True)
class Patch:
    """Row r gets the clean `kind` at token `token[r]` in layers `low[r] <= l < high[r]`."""

    kind: str
    token: Int[Tensor, "batch"]
    low: Int[Tensor, "batch"]
    high: Int[Tensor, "batch"]
    clean: Sites

    def __call__(self, kind: str, layer: int, value: Tensor) -> Tensor:
        """The value with the clean one put in where this patch says so."""
        if kind != self.kind:
            return value
        rows = torch.nonzero((self.low <= layer) & (layer < self.high)).squeeze(1)
        if len(rows):
            value[rows, self.token[rows]] = getattr(self.clean, kind)[layer][self.token[rows]]
        return value


def make_probe(tokenizer: PreTrainedTokenizerFast, fact: WorldFact, phrasing: str) -> Probe:
    """The fact's prompt in this phrasing."""
    passage = fill(phrasing, fact.entity)
    encoding = tokenizer.backend_tokenizer.encode(passage.text)
    (start, end), = passage.mentions
    answer = tokenizer.backend_tokenizer.encode(" " + fact.object).ids[0]
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    return Probe(passage.text, torch.tensor(encoding.ids), first, last, answer)


@torch.inference_mode()
def embedding_spread(model: GPT2LMHeadModel, probes: Sequence[Probe]) -> float:
    """Standard deviation of the token embeddings of all subjects."""
    tokens = torch.cat([probe.tokens[probe.first : probe.last + 1] for probe in probes])
    return float(model.transformer.wte(tokens).std())


def _run(model: GPT2LMHeadModel, embedded: Tensor, patch: Patch | None = None) -> tuple[Tensor, Sites]:
    body, sites = model.transformer, Sites([], [], [])
    rows, length, _ = embedded.shape
    hidden = embedded + body.wpe(torch.arange(length))
    for layer, block in enumerate(body.h):
        joined = block.attn.c_attn(block.ln_1(hidden)).view(rows, length, 3, block.attn.num_heads, -1)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        attn = block.attn.c_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        attn = patch("attn", layer, attn) if patch else attn
        hidden = hidden + attn
        mlp = block.mlp(block.ln_2(hidden))
        mlp = patch("mlp", layer, mlp) if patch else mlp
        hidden = hidden + mlp
        hidden = patch("state", layer, hidden) if patch else hidden
        for store, value in ((sites.attn, attn), (sites.mlp, mlp), (sites.state, hidden)):
            store.append(value[0])
    return model.lm_head(body.ln_f(hidden[:, -1])), sites


@torch.inference_mode()
def restore(
    model: GPT2LMHeadModel, probe: Probe, *, kind: str, window: int, noise: float, samples: int, seed: int
) -> Restored:
    """Indirect effects of every token and layer of one prompt; windows are `[l - w // 2, l - w // 2 + w)`, clipped."""
    layers, length = len(model.transformer.h), len(probe.tokens)
    embedded = model.transformer.wte(probe.tokens)
    logits, clean = _run(model, embedded[None])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(samples, probe.last + 1 - probe.first, embedded.shape[1], generator=generator) * noise
    corrupted = embedded.repeat(samples, 1, 1)
    corrupted[:, probe.first : probe.last + 1] += drawn
    baseline = float(_run(model, corrupted)[0].softmax(-1)[:, probe.answer].mean())
    grid = [(token, layer) for token in range(probe.first, length) for layer in range(layers)]
    effect = torch.zeros(length, layers)
    at_once = max(1, _TOKENS_PER_BATCH // (samples * length))
    for start in range(0, len(grid), at_once):
        part = torch.tensor(grid[start : start + at_once])
        token, centre = part.repeat_interleave(samples, dim=0).T
        low = (centre - window // 2).clamp(min=0)
        high = centre - window // 2 + window
        restored, _ = _run(model, corrupted.repeat(len(part), 1, 1), Patch(kind, token, low, high, clean))
        chance = restored.softmax(-1)[:, probe.answer].view(len(part), samples).mean(1)
        effect[part[:, 0], part[:, 1]] = chance - baseline
    return Restored(float(logits.softmax(-1)[0, probe.answer]), baseline, effect)


def by_group(probe: Probe, effect: Float[Tensor, "pos layer"]) -> dict[str, Float[Tensor, "layer"]]:
    """Mean effect of each token group that this prompt has (PROTOCOL's six groups)."""
    end = len(probe.tokens) - 1
    places = {
        "first subject": [probe.first] if probe.first < probe.last else [],
        "middle subject": list(range(probe.first + 1, probe.last)),
        "last subject": [probe.last],
        "first later": [probe.last + 1] if probe.last + 1 < end else [],
        "further": list(range(probe.last + 2, end)),
        "last prompt": [end],
    }
    return {name: effect[tokens].mean(0) for name, tokens in places.items() if tokens}
