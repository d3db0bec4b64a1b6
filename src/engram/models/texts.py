"""How well a model predicts whole texts: the sum behind every perplexity."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from engram.models.lm import LM

_TOKENS_PER_PASS = 2048


@torch.no_grad()
def text_losses(lm: "LM", rows: Sequence[Sequence[int]]) -> list[float]:
    """Return each text's negative log-likelihood in nats, summed over its tokens but the first.

    Texts of similar lengths share a pass.

    Args:
        lm: the model.
        rows: the texts' token ids, each at least one.

    Raises:
        NumericalError: the model's output has NaN or infinity.
    """
    result = [0.0] * len(rows)
    for batch in _batches([len(row) for row in rows]):
        for i, loss in zip(batch, _losses(lm, [list(rows[i]) for i in batch]), strict=True):
            result[i] = loss
    return result


def perplexity_of(loss: float, count: int) -> float:
    """Return exp of the loss per token; of a broken model's loss the largest that a float holds, about."""
    return math.exp(min(loss / count, 700.0))


def _losses(lm: "LM", rows: list[list[int]]) -> list[float]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = lm.forward(ids, mask=real if len(rows) > 1 else None)[:, :-1].float()
    picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None].to(logits.device)).squeeze(-1).cpu()
    lm.require_finite(picked[real[:, 1:].bool()], "The likelihood of a text")
    return (-picked * real[:, 1:]).double().sum(1).tolist()


def _batches(lengths: list[int]) -> list[list[int]]:
    """Put texts of similar lengths together, a bounded number of tokens per pass."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= _TOKENS_PER_PASS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
