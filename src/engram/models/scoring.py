"""Mean token negative log-likelihood of continuations: one pass over the prompts, short ones over the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import FactError
from engram.models.encoding import Encoded, encode
from engram.models.resume import Prefilled, prefill

if TYPE_CHECKING:
    from engram.models.lm import LM


def joined(prompt: str, continuation: str) -> str:
    """Return the prompt and its continuation with white space between them (the published code's one space)."""
    gap = "" if not prompt or prompt[-1].isspace() or continuation[:1].isspace() else " "
    return f"{prompt}{gap}{continuation}"


def continuation_ids(lm: "LM", prompt: str, continuation: str) -> list[int]:
    """Return the token ids that a continuation adds to a prompt.

    Raises:
        FactError: it adds none.
    """
    if not continuation.strip():
        raise FactError(f"The continuation of {prompt!r} is empty. Give at least one word.")
    whole = encode(lm.tokenizer, [joined(prompt, continuation)], max_positions=lm.max_positions)
    ids = [int(i) for i, (_, end) in zip(whole.ids[0], whole.offsets[0], strict=True) if end > len(prompt.rstrip())]
    if not ids:
        raise FactError(f"The continuation {continuation!r} tokenises to nothing. Choose another target.")
    return ids


def score(
    lm: "LM", prompts: str | Sequence[str], continuations: Sequence[str] | Sequence[Sequence[str]], *, batch_size: int
) -> Float[Tensor, "batch continuation"]:
    """See `LM.score`."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    wanted = _per_prompt(texts, continuations)
    result = torch.empty(len(texts), len(wanted[0]) if wanted else 0)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        result[rows] = score_batch(lm, [texts[i] for i in rows], [wanted[i] for i in rows])
    return result


@dataclass(frozen=True, slots=True)
class Scored:
    """What a batch says about continuations.

    Args:
        nll: mean token negative log-likelihood, nats.
        targets: for each row and continuation its token ids.
        predictions: for each of these tokens the id that was most probable in its place, the true ones before it given.
    """

    nll: Float[Tensor, "batch continuation"]
    targets: list[list[list[int]]]
    predictions: list[list[list[int]]]


def score_batch(
    lm: "LM", prompts: Sequence[str], continuations: Sequence[Sequence[str]]
) -> Float[Tensor, "batch continuation"]:
    """Score one batch. Every pass has exactly these rows, in this order, so that each row may carry its own edit."""
    return score_tokens(lm, prompts, continuations).nll


@torch.no_grad()
def score_tokens(lm: "LM", prompts: Sequence[str], continuations: Sequence[Sequence[str]]) -> Scored:
    """Score one batch as `score_batch` does, and say what was predicted in every token's place."""
    encoded = lm.encode(prompts, padding_side="left")
    targets = [[continuation_ids(lm, p, c) for c in cs] for p, cs in zip(prompts, continuations, strict=True)]
    first = prefill(lm, encoded.ids, mask=encoded.mask)
    lm.require_finite(first.logits, "The output")
    columns = [
        _column(lm, encoded, first, [row[j] for row in targets]) for j in range(len(targets[0]) if targets else 0)
    ]
    predictions = [
        [columns[j][1][i, : len(target)].tolist() for j, target in enumerate(row)] for i, row in enumerate(targets)
    ]
    return Scored(torch.stack([nll for nll, _ in columns], dim=1), targets, predictions)


def _column(lm: "LM", encoded: Encoded, first: Prefilled, targets: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Score one continuation per row: its first token from the prompt's pass, the others from one short pass.

    Returns the mean NLL [batch] and the most probable tokens [batch pos], meaningless beyond a row's own length.
    """
    longest = max(len(t) for t in targets)
    padded = torch.tensor([t + [t[-1]] * (longest - len(t)) for t in targets])
    real = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in targets])
    logits = first.logits
    if longest > 1:
        mask = torch.cat([encoded.mask, real[:, :-1]], dim=1)
        rest = lm.forward(padded[:, :-1], mask=mask, cache=first.prefix.cache(), keep=0)
        logits = torch.cat([logits, rest], dim=1)
    logp = logits.float().log_softmax(-1)
    chosen = logp.gather(-1, padded.unsqueeze(-1).to(logp.device)).squeeze(-1).cpu()
    return -(chosen * real).sum(1) / real.sum(1), logits.argmax(-1).cpu()


def _per_prompt(texts: list[str], continuations: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    if all(isinstance(c, str) for c in continuations):
        shared = [str(c) for c in continuations]
        return [shared for _ in texts]
    lists = [list(c) for c in continuations]
    if len(lists) != len(texts) or len({len(c) for c in lists}) > 1:
        raise FactError(
            f"{len(texts)} prompt(s) but {len(lists)} list(s) of continuations, lengths {[len(c) for c in lists][:8]}; "
            f"give one list of equal length per prompt."
        )
    return lists
