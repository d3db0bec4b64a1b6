"""The most probable next tokens under several edits, each completed to the word it begins."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engram.editing import Edit, applied_rows
from engram.models.generation import Generation, generate_batch

if TYPE_CHECKING:
    from engram.models import LM

_REST = re.compile(r"[\w'’-]*")
_REST_TOKENS = 6


@dataclass(frozen=True, slots=True)
class NextWord:
    """A next token.

    Args:
        token: the token.
        rest: what the model goes on with after it, up to the end of the word; empty where the token ends its word.
        probability: of the token.
    """

    token: str
    rest: str
    probability: float


NextWords = tuple[NextWord, ...]


@torch.no_grad()
def next_words(lm: "LM", prompt: str, edits: Sequence[Edit | None], *, top: int = 5) -> list[NextWords]:
    """Return for each edit (`None`: unedited) the most probable next tokens, all edits in one batch.

    Raises:
        NumericalError: the model's output has NaN or infinity.
    """
    encoded = lm.encode([prompt] * len(edits))
    with applied_rows(lm, edits):
        logits = lm.forward(encoded.ids, keep=1)[:, -1].float()
    lm.require_finite(logits, "The output")
    best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
    tokens = [lm.tokens(ids) for ids in best.indices]
    rests = iter(_rests(lm, prompt, tokens, edits, room=_room(lm, encoded.ids.shape[1])))
    return [
        tuple(NextWord(token, next(rests), float(chance)) for token, chance in zip(row, chances, strict=True))
        for row, chances in zip(tokens, best.values, strict=True)
    ]


def _rests(
    lm: "LM", prompt: str, tokens: Sequence[Sequence[str]], edits: Sequence[Edit | None], *, room: int
) -> list[str]:
    """Return the rest of each token's word, the edits' rows one after the other."""
    texts = [prompt + token for row in tokens for token in row]
    if room < 1:
        return [""] * len(texts)
    under = [edit for row, edit in zip(tokens, edits, strict=True) for _ in row]
    with applied_rows(lm, under):
        longer = generate_batch(lm, texts, Generation(max_new_tokens=room))
    return [
        found.group() if text[-1:].isalnum() and (found := _REST.match(more, len(text))) else ""
        for text, more in zip(texts, longer, strict=True)
    ]


def _room(lm: "LM", length: int) -> int:
    """Return how many tokens may follow a prompt and a token, which may be read again as several."""
    return _REST_TOKENS if lm.max_positions is None else min(_REST_TOKENS, lm.max_positions - length - _REST_TOKENS)
