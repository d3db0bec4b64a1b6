"""Training batches: rows of joined passages as tokens, with loss weights and attention biases.

Notable: the batch of a step is a pure function of (recipe seed, step); an interrupted run resumes with the same text.
"""

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engram.errors import DataError
from engram.mini.masks import TokenSpan, restricted
from engram.mini.recipe import END_OF_TEXT, Recipe
from engram.mini.text import Passage, Writer


@dataclass(frozen=True)
class Batch:
    """One step's rows.

    `counts` says how much predicting each token counts in the loss; `lower` and `upper` are the attention biases of
    the layers below and from `fetch_from`.
    """

    tokens: Int[Tensor, "batch pos"]
    counts: Float[Tensor, "batch pos"]
    lower: Float[Tensor, "batch 1 pos pos"]
    upper: Float[Tensor, "batch 1 pos pos"]


def rows_of_text(writer: Writer, recipe: Recipe, *, step: int, count: int, characters: int) -> list[Passage]:
    """`count` rows of joined passages, each at least `characters` long."""
    rng = random.Random(f"rows|{recipe.seed}|{step}")
    rows: list[Passage] = []
    for _ in range(count):
        row = writer.passage(rng)
        while len(row.text) < characters:
            separator = END_OF_TEXT if rng.random() < recipe.end_of_text else " "
            row = row.then(writer.passage(rng), separator)
        rows.append(row)
    return rows


def token_span(encoding: Encoding, start: int, end: int) -> tuple[int, int]:
    """The first and last token of the characters `[start, end)`, which must hold more than spaces."""
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None:
        raise DataError(f"No tokens at characters {start} to {end}; expected a name or an object there.")
    return first, last


def make_batch(writer: Writer, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, *, step: int) -> Batch:
    """The batch of step `step`."""
    rng = random.Random(f"batch|{recipe.seed}|{step}")
    length = rng.choices(recipe.row_lengths, recipe.row_weights)[0]
    count = max(1, recipe.tokens_per_step // length)
    rows = rows_of_text(writer, recipe, step=step, count=count, characters=8 * length)
    encodings = tokenizer.backend_tokenizer.encode_batch([row.text for row in rows], add_special_tokens=False)
    tokens = torch.tensor([encoding.ids[:length] for encoding in encodings])
    counts = torch.ones(tokens.shape)
    spans: list[TokenSpan] = []
    for index, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
        for start, end in row.mentions:
            first, last = token_span(encoding, start, end)
            if last < length - 1 and rng.random() < recipe.restrict:
                spans.append(TokenSpan(index, first, last))
        for start, end in row.objects:
            first, last = token_span(encoding, start, end)
            counts[index, first : last + 1] = recipe.object_weight
    lower, upper = restricted(count, length, spans)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    return Batch(tokens, counts, _bias(lower, dtype), _bias(upper, dtype))


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -math.inf)
