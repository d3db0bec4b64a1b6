"""The door of models that cannot continue: everything is run again, with what follows behind it.

Rows are padded on the right, where a model that only looks back never sees it, so that not even the mask is relied on.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.models.encoding import right_padded
from engram.models.runs.reading import Reading

if TYPE_CHECKING:
    from engram.models.lm import LM


def read(lm: "LM", ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int) -> Reading:
    """Run the prompts; their tokens are what is kept."""
    rows = _real(ids, mask)
    return Reading(_last(lm, rows, [len(row) for row in rows], keep or ids.shape[1]), mask, rows)


def go_on(
    lm: "LM",
    reading: Reading,
    ids: Int[Tensor, "batch new"],
    real: Int[Tensor, "batch new"],
    keep: int,
    again: bool,
) -> Reading:
    """Run everything; logits are those of the new positions."""
    before: list[list[int]] = reading.memory
    rows = [old + new for old, new in zip(before, _real(ids, real), strict=True)]
    logits = _last(lm, rows, [len(row) + ids.shape[1] for row in before], keep or ids.shape[1])
    return Reading(logits, torch.cat([reading.mask, real], dim=1), None if again else rows)


def _real(ids: Tensor, real: Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, real, strict=True)]


def _last(lm: "LM", rows: list[list[int]], ends: list[int], width: int) -> Float[Tensor, "batch keep vocab"]:
    """Return the logits of `width` positions of each row, the last one before its end; padding has any."""
    ids, mask = right_padded(rows)
    wanted = (torch.tensor(ends)[:, None] - width + torch.arange(width)).clamp(0, ids.shape[1] - 1)
    first = int(wanted.min())
    logits = lm.forward(ids, mask=None if bool(mask.all()) else mask, keep=torch.arange(first, ids.shape[1]))
    index = (wanted - first).to(logits.device)
    return logits.gather(1, index[..., None].expand(-1, -1, logits.shape[-1]))
