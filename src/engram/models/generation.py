"""Next tokens and whole texts: batched, what was read before is kept where the model can continue from it.

Sampling draws each row from its own generator, seeded by the seed and the prompt, so a text does not depend on which
other prompts are in the batch.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.errors import SettingError
from engram.given import require, require_texts
from engram.models.runs import go_on, read

if TYPE_CHECKING:
    from engram.models.lm import LM


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How to continue a text.

    Args:
        max_new_tokens: how many tokens at most.
        top_k: 1 for greedy, k > 1 to sample among the k most probable.
        seed: for sampling.
        beyond_end: go on after the end-of-text token, as the published evaluation does.

    Raises:
        SettingError: a number below 1.
    """

    max_new_tokens: int = 30
    top_k: int = 1
    seed: int = 0
    beyond_end: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)}; it must be 1 or more.")


@torch.no_grad()
def next_tokens(lm: "LM", prompt: str, *, k: int) -> list[tuple[str, float]]:
    """See `LM.next_tokens`."""
    require(prompt, str, "prompt")
    logits = lm.forward(lm.encode(prompt).ids, keep=1)[0, -1].float()
    lm.require_finite(logits, "The output")
    top = logits.softmax(-1).topk(min(k, len(logits)))
    return list(zip(lm.tokens(top.indices), [float(p) for p in top.values], strict=True))


def generate(lm: "LM", prompts: str | Sequence[str], how: Generation) -> str | list[str]:
    """See `LM.generate`."""
    require_texts(prompts, "prompts")
    if isinstance(prompts, str):
        return generate_batch(lm, [prompts], how)[0]
    return generate_batch(lm, list(prompts), how)


@torch.no_grad()
def generate_batch(
    lm: "LM",
    prompts: list[str],
    how: Generation,
    *,
    limits: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Continue several prompts at once; row i of every pass is prompt i, so that each row may carry its own edit.

    Args:
        lm: the model.
        prompts: what to continue.
        how: settings.
        limits: how many new tokens at most for each prompt, where they differ.
        names: what each row's random numbers depend on beside the seed. The prompt and how often it stands above it
            when not given; then a batch must hold whatever else is to have the same prompt.
    """
    if not prompts:
        return []
    encoded = lm.encode(prompts, padding_side="left")
    most = torch.tensor([how.max_new_tokens] * len(prompts) if limits is None else list(limits))
    lm.require_positions(int((encoded.mask.sum(1) + most).max()), "Prompt and generated text")
    generators = _generators(_names(prompts) if names is None else names, how.seed)
    end = None if how.beyond_end else lm.tokenizer.eos_token_id
    new: list[Tensor] = []
    running = most > 0
    if not running.any():
        return list(prompts)
    with lm.passes.continued():
        reading = read(lm, encoded.ids, mask=encoded.mask)
        while True:
            logits = reading.logits[:, -1].float().cpu()
            lm.require_finite(logits, "The output")
            chosen = logits.argmax(-1) if how.top_k == 1 else _sample(logits, how.top_k, generators)
            running = running & (chosen != end) if end is not None else running
            new.append(torch.where(running, chosen, torch.full_like(chosen, -1)))
            running = running & (len(new) < most)
            if not running.any():
                break
            reading = go_on(lm, reading, chosen.unsqueeze(1), real=running.long().unsqueeze(1), keep=1)
    return [_text(lm, prompt, [int(step[i]) for step in new]) for i, prompt in enumerate(prompts)]


def _text(lm: "LM", prompt: str, new: list[int]) -> str:
    """Append the generated tokens; the prompt stays as typed even where decoding would change its spacing."""
    kept = [i for i in new if i >= 0]
    head = lm.encode(prompt).ids[0].tolist()
    before = lm.tokenizer.decode(head, skip_special_tokens=True)
    return prompt + lm.tokenizer.decode(head + kept, skip_special_tokens=True)[len(before) :]


def _sample(logits: Float[Tensor, "batch vocab"], k: int, generators: list[torch.Generator]) -> Int[Tensor, " batch"]:
    top = logits.topk(min(k, logits.shape[-1]))
    weights = top.values.softmax(-1)
    picks = [torch.multinomial(row, 1, generator=g) for row, g in zip(weights, generators, strict=True)]
    return top.indices.gather(1, torch.stack(picks)).squeeze(1)


def _names(prompts: list[str]) -> list[str]:
    """Name rows by their prompts; the same prompt twice gets two names, and so two different texts."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for prompt in prompts:
        names.append(f"{seen[prompt]}\n{prompt}")
        seen[prompt] += 1
    return names


def _generators(names: Sequence[str], seed: int) -> list[torch.Generator]:
    """One generator per row."""
    keys = (hashlib.sha256(f"{seed}\n{name}".encode()).digest() for name in names)
    return [torch.Generator().manual_seed(int.from_bytes(key[:7], "big")) for key in keys]
