"""The most probable next words under several edits: each next token is completed to the word that it begins."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    """A next word.

    Args:
        token: the most probable token that begins it.
        rest: what the model goes on with after that token, up to the end of the word; empty where the token ends it.
        probability: of this token and of all others among the most probable that are completed to the same word.
    """

    token: str
    rest: str
    probability: float

    @property
    def word(self) -> str:
        """The whole word, as it is read: without white space around it."""
        return (self.token + self.rest).strip()


NextWords = tuple[NextWord, ...]


@torch.no_grad()
def next_words(lm: "LM", prompt: str, edits: Sequence[Edit | None], *, top: int = 5) -> list[NextWords]:
    """Return for each edit (`None`: unedited) the words that the `top` next tokens begin, all edits in one batch.

    Tokens that are completed to one word are one entry, whose probability is their sum.

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
        merged(NextWord(token, next(rests), float(chance)) for token, chance in zip(row, chances, strict=True))
        for row, chances in zip(tokens, best.values, strict=True)
    ]


def merged(words: Iterable[NextWord]) -> NextWords:
    """Add up entries of one word, the most probable first; white space alone is no word, so it stays as it is."""
    found: dict[str, NextWord] = {}
    for each in words:
        key = each.word or each.token
        seen = found.get(key)
        found[key] = each if seen is None else replace(seen, probability=seen.probability + each.probability)
    return tuple(sorted(found.values(), key=lambda word: -word.probability))


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
