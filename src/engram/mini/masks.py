"""Attention masks that decide, during training only, where `mini` may look facts up.

Notable: with an ordinary causal mask a small model recalls facts wherever it likes, mostly at the last token of the
prompt. Here, in the lower layers, positions after a name may not attend to it at all, and in the upper layers only to
its last token. So whatever is known about the name has to be gathered at its last token, by the lower layers, before
later positions fetch it: the division of labour that causal tracing finds in large models. At inference the mask is the
ordinary one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class TokenSpan:
    """A name's tokens `[first, last]` in row `row`."""

    row: int
    first: int
    last: int


def causal(rows: int, length: int) -> Bool[Tensor, "batch 1 pos pos"]:
    """The ordinary mask: position i attends to j <= i."""
    return torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, length, length).clone()


def restricted(
    rows: int, length: int, spans: Sequence[TokenSpan]
) -> tuple[Bool[Tensor, "batch 1 pos pos"], Bool[Tensor, "batch 1 pos pos"]]:
    """The masks of the lower and of the upper layers; true where attention is allowed.

    Positions after a span see none of its tokens in the lower layers and only its last one in the upper layers. Tokens
    of the span see each other as usual.
    """
    lower = np.tril(np.ones((length, length), dtype=bool))[None].repeat(rows, axis=0)
    upper = lower.copy()
    for span in spans:
        lower[span.row, span.last + 1 :, span.first : span.last + 1] = False
        upper[span.row, span.last + 1 :, span.first : span.last] = False
    return torch.from_numpy(lower)[:, None], torch.from_numpy(upper)[:, None]
