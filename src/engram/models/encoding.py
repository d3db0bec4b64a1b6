"""Text to tokens with character offsets, and the tokens of a subject.

Subjects are found by character offset, never by re-tokenising pieces, so BOS tokens, merges, either padding side,
repeated subjects and Unicode need no special cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from engram.errors import FactError, PromptTooLong, TokenizerError
from engram.showing import Shown

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True, repr=False)
class Encoded(Shown):
    """A batch of token ids, padded to one length.

    Args:
        ids: token ids.
        mask: 1 at real tokens, 0 at padding.
        offsets: for each row and position the characters [begin, end) that the token stands for; empty for padding and
            for special tokens such as BOS.
        texts: what was encoded.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    offsets: tuple[tuple[tuple[int, int], ...], ...]
    texts: tuple[str, ...]

    @property
    def lengths(self) -> list[int]:
        """Number of real tokens of each row."""
        return [int(n) for n in self.mask.sum(1)]

    def span(self, row: int, begin: int, end: int) -> range:
        """Return the positions of the tokens that overlap the characters [begin, end) of a row.

        Raises:
            FactError: no token stands for any of these characters.
        """
        inside = [
            i for i, (b, e) in enumerate(self.offsets[row]) if b < end and e > begin and self.mask[row, i] and e > b
        ]
        if not inside:
            raise FactError(
                f"No token stands for {self.texts[row][begin:end]!r} in {self.texts[row]!r}; "
                f"the tokenizer drops these characters."
            )
        return range(inside[0], inside[-1] + 1)

    def beyond(self, row: int, char: int) -> range:
        """Return the positions of the tokens that stand for a character from `char` on; empty where there are none.

        A token that stands for characters on both sides is one of them.
        """
        there = [i for i, (_, end) in enumerate(self.offsets[row]) if end > char]  # padding ends at 0
        return range(there[0], there[-1] + 1) if there else range(0)


def encode(
    tokenizer: Any, texts: Sequence[str], *, padding_side: Side = "right", max_positions: int | None = None
) -> Encoded:
    """Encode texts as the tokenizer does by default (with its special tokens), and pad them.

    The tokenizer itself is not changed: neither its padding side nor its padding token.

    Raises:
        TokenizerError: the tokenizer cannot report character offsets.
        PromptTooLong: a text has more tokens than `max_positions`.
        FactError: a text has no tokens at all.
    """
    require_offsets(tokenizer)
    out = tokenizer(list(texts), return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    rows: list[list[int]] = out["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise FactError(f"The text {text!r} has no tokens. Write at least one word.")
        if max_positions is not None and len(row) > max_positions:
            raise PromptTooLong(
                f"{len(row)} tokens, but the model has {max_positions} positions: {text[:60]!r}... Shorten the text."
            )
    longest = max(len(row) for row in rows)
    pad = _pad_id(tokenizer)
    left = padding_side == "left"
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    offsets: list[tuple[tuple[int, int], ...]] = []
    for i, row in enumerate(rows):
        gap = longest - len(row)
        where = slice(gap, None) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
        spans = tuple(_trimmed(texts[i], b, e) for b, e in out["offset_mapping"][i])
        padding = ((0, 0),) * gap
        offsets.append(padding + spans if left else spans + padding)
    return Encoded(ids, mask, tuple(offsets), tuple(texts))


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Pad rows of token ids on the left to one length; return ids and mask (1 at real tokens)."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Pad rows of token ids on the right to one length; return ids and mask (1 at real tokens)."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def require_offsets(tokenizer: Any) -> None:
    """Check that a tokenizer is a fast one.

    Raises:
        TokenizerError: it is not.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} does not report character offsets, which Engram needs to find a subject's "
            f"tokens. Load the fast version: AutoTokenizer.from_pretrained(name, use_fast=True)."
        )


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """Leave out the white space that some tokenizers count into a token's offsets (' Rome' is the word's).

    A token of nothing but white space is empty and ends where it ended.
    """
    last = end
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    return (begin, end) if begin < end else (last, last)


def _pad_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
