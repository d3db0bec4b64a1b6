"""Rows whose lower layers were run once, for training at one layer: only it and what is above it runs at every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.parts.prompts import Batch, Row
from engram.models.hooks import on_block_input
from engram.models.resume import resume

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Above:
    """What is left to run for some rows.

    Args:
        lm: the model.
        layer: the first layer to run.
        batch: the rows.
        keep: number of last positions whose logits are wanted.
        states: what enters that layer; None to run whole passes.
    """

    lm: "LM"
    layer: int
    batch: Batch
    keep: int
    states: Float[Tensor, "batch pos d_model"] | None

    def logits(self) -> Float[Tensor, "batch keep vocab"]:
        """Return logits (fp32) as the layers now are; gradients flow to whatever changes them."""
        if self.states is None:
            return self.lm.forward(self.batch.ids, mask=self.batch.mask, keep=self.keep).float()
        return resume(self.lm, self.states, layer=self.layer, mask=self.batch.mask, keep=self.keep).float()


@torch.no_grad()
def above(lm: "LM", batch: Batch, layer: int, *, keep: int) -> Above:
    """Run rows up to a layer; whole passes stay to be run where a family cannot go on from its middle."""
    kept: list[Tensor] = []

    def keep_it(hidden: Tensor) -> Tensor:
        kept.append(hidden.clone())
        return hidden

    if lm.can_resume:
        with on_block_input(lm, layer, keep_it):
            lm.forward(batch.ids, mask=batch.mask, keep=1)
    return Above(lm, layer, batch, keep, kept[0] if kept else None)


def target_losses(
    logits: Float[Tensor, "batch keep vocab"], rows: Sequence[Row], *, at_last: bool = False
) -> Float[Tensor, " batch"]:
    """Return each row's mean negative log-likelihood of its target.

    Args:
        logits: of the last positions.
        rows: they end before the target's last token.
        at_last: read every target token off the last position.
    """
    logp = logits.log_softmax(-1)
    each: list[Tensor] = []
    for line, row in zip(logp, rows, strict=True):
        count = len(row.targets)
        columns = torch.full((count,), -1) if at_last else torch.arange(-count, 0)
        each.append(-line[columns, torch.tensor(row.targets, device=line.device)].mean())
    return torch.stack(each)
