"""Mean token negative log-likelihood of continuations: one pass over the prompts, short ones over the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import FactError
from engram.given import require_each, require_list, require_texts
from engram.models.continuations import Continuation, continued
from engram.models.encoding import left_padded
from engram.models.runs import Reading, go_on, read
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models.lm import LM


def score(
    lm: "LM", prompts: str | Sequence[str], continuations: Sequence[str] | Sequence[Sequence[str]], *, batch_size: int
) -> Float[Tensor, "batch continuation"]:
    """See `LM.score`."""
    require_texts(prompts, "prompts")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    wanted = _per_prompt(texts, continuations)
    result = torch.empty(len(texts), len(wanted[0]) if wanted else 0)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        result[rows] = score_batch(lm, [texts[i] for i in rows], [wanted[i] for i in rows])
    return result


@dataclass(frozen=True, slots=True, repr=False)
class Scored(Shown):
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


def score_tokens(lm: "LM", prompts: Sequence[str], continuations: Sequence[Sequence[str]]) -> Scored:
    """Score one batch as `score_batch` does, and say what was predicted in every token's place."""
    return score_texts(
        lm, [[Continuation.after(p, c) for c in cs] for p, cs in zip(prompts, continuations, strict=True)]
    )


@torch.no_grad()
def score_texts(lm: "LM", rows: Sequence[Sequence[Continuation]]) -> Scored:
    """Score one batch of texts as they stand: for each row the same number of continuations.

    A row's continuations share one pass over the tokens that all of them have before them: as a rule the whole prompt.
    """
    many = len(rows[0]) if rows else 0
    found = continued(lm, [text for row in rows for text in row])
    targets = [[found.ids(i * many + j) for j in range(many)] for i in range(len(rows))]
    before = [[found.before(i * many + j) for j in range(many)] for i in range(len(rows))]
    shared = [_common(each) for each in before]
    if not all(shared):  # what follows changes how a prompt begins: nothing is shared
        return _beside([score_texts(lm, [[row[j]] for row in rows]) for j in range(many)])
    ids, mask = left_padded(shared)
    rests = [
        [b[len(s) :] + t for b, t in zip(bs, ts, strict=True)]
        for s, bs, ts in zip(shared, before, targets, strict=True)
    ]
    with lm.passes.continued():
        first = read(lm, ids, mask=mask)
        lm.require_finite(first.logits, "The output")
        columns = [_column(lm, first, [row[j] for row in rests], [len(row[j]) for row in targets]) for j in range(many)]
    predictions = [[columns[j][1][i] for j in range(many)] for i in range(len(rows))]
    return Scored(torch.stack([nll for nll, _ in columns], dim=1), targets, predictions)


def _column(lm: "LM", first: Reading, rests: list[list[int]], counts: list[int]) -> tuple[Tensor, list[list[int]]]:
    """Score one continuation per row, the last `counts` tokens of what follows the shared ones.

    The first token is scored by the shared tokens' pass, the others by one short pass. Returns the mean NLL [batch] and
    each row's most probable tokens.
    """
    longest = max(len(rest) for rest in rests)
    padded = torch.tensor([rest + [rest[-1]] * (longest - len(rest)) for rest in rests])
    lengths, numbers = torch.tensor([len(rest) for rest in rests]), torch.tensor(counts)
    place = torch.arange(longest)
    real = (place < lengths[:, None]).long()
    scored = real * (place >= (lengths - numbers)[:, None])
    logits = first.logits
    if longest > 1:
        rest = go_on(lm, first, padded[:, :-1], real=real[:, :-1], again=True)
        logits = torch.cat([logits, rest.logits], dim=1)
    logp = logits.float().log_softmax(-1)
    chosen = logp.gather(-1, padded.unsqueeze(-1).to(logp.device)).squeeze(-1).cpu()
    best = logits.argmax(-1).cpu()
    said = [row[keep.bool()].tolist() for row, keep in zip(best, scored, strict=True)]
    return -(chosen * scored).sum(1) / numbers, said


def _common(rows: list[list[int]]) -> list[int]:
    """Return the tokens with which all rows begin."""
    length = min(len(row) for row in rows)
    same = (i for i in range(length) if any(row[i] != rows[0][i] for row in rows))
    return rows[0][: next(same, length)]


def _beside(columns: list[Scored]) -> Scored:
    """Put the scores of single continuations beside each other."""
    rows = range(len(columns[0].targets))
    return Scored(
        torch.cat([column.nll for column in columns], dim=1),
        [[column.targets[i][0] for column in columns] for i in rows],
        [[column.predictions[i][0] for column in columns] for i in rows],
    )


def _per_prompt(texts: list[str], continuations: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    every = require_list(continuations, str, "continuations")
    if all(isinstance(c, str) for c in every):
        shared = [str(c) for c in every]
        if not shared:
            raise FactError("There is nothing to score. Give at least one continuation.")
        return [shared for _ in texts]
    if any(isinstance(c, str) for c in every):
        require_each(every, str, "continuations")
    lists = [require_each(c, str, f"continuations[{i}]") for i, c in enumerate(every)]
    if len(lists) != len(texts) or len({len(c) for c in lists}) > 1:
        raise FactError(
            f"{len(texts)} prompt(s) but {len(lists)} list(s) of continuations, lengths {[len(c) for c in lists][:8]}; "
            f"give one list of equal length per prompt."
        )
    return lists
