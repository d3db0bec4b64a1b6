"""Perplexity of texts: what an edit did to everything else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from engram.errors import FactError

if TYPE_CHECKING:
    from engram.models import LM

ESSENCE_TOKENS = 100
"""Length to which essence texts are cut, as published."""

_TOKENS_PER_PASS = 2048


@torch.no_grad()
def perplexities(
    lm: "LM", texts: Sequence[str], *, max_tokens: int | None = None, published: bool = False
) -> list[float]:
    """Return each text's perplexity, exp of the mean negative log-likelihood of its tokens but the first.

    Args:
        lm: the model.
        texts: what it shall predict.
        max_tokens: cut texts to so many tokens (never more than the model has positions).
        published: divide by the number of all tokens instead of the predicted ones, as the ROME repository does.

    Raises:
        FactError: a text has fewer than two tokens.
        NumericalError: the model's output has NaN.
    """
    limits = [limit for limit in (max_tokens, lm.max_positions) if limit is not None]
    longest = min(limits) if limits else None
    ids = [lm.tokenizer(text, verbose=False)["input_ids"][:longest] for text in texts]
    for text, row in zip(texts, ids, strict=True):
        if len(row) < 2:
            raise FactError(f"The text {text!r} has fewer than two tokens; perplexity needs more.")
    result = [0.0] * len(ids)
    for batch in _batches([len(row) for row in ids]):
        for i, value in zip(batch, _losses(lm, [ids[i] for i in batch], published=published), strict=True):
            result[i] = value
    return result


def _losses(lm: "LM", rows: list[list[int]], *, published: bool) -> list[float]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = lm.forward(ids, mask=real if len(rows) > 1 else None)[:, :-1].float()
    picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None].to(logits.device)).squeeze(-1).cpu()
    lm.require_finite(picked, "The likelihood of a text")
    total = -(picked * real[:, 1:]).sum(1)
    count = real.sum(1) if published else real.sum(1) - 1
    return torch.exp(total / count).tolist()


def _batches(lengths: list[int]) -> list[list[int]]:
    """Put texts of similar lengths together, a bounded number of tokens per pass."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= _TOKENS_PER_PASS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
