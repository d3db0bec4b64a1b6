"""Perplexity of texts: what an edit did to everything else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engram.errors import FactError
from engram.models.texts import perplexity_of, text_losses

if TYPE_CHECKING:
    from engram.models import LM

ESSENCE_TOKENS = 100
"""Length to which essence texts are cut, as published."""


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
    counts = [len(row) if published else len(row) - 1 for row in ids]
    return [perplexity_of(loss, count) for loss, count in zip(text_losses(lm, ids), counts, strict=True)]
