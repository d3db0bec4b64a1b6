"""Running a model over texts: `read` a prompt, `go_on` behind it. Scoring and generation know these two calls only.

Which door a model runs through is measured when it is wrapped (`lm.can_continue`): a decoder whose kept keys and values
give what a whole pass gives runs through `decoder`; any other one through `whole`, slower and right. A kind of model
with another memory (an encoder's states, a recurrent state) is one more door.
"""

from typing import TYPE_CHECKING, Protocol

from jaxtyping import Int
from torch import Tensor

from engram.models.runs import decoder, whole
from engram.models.runs.reading import Reading

if TYPE_CHECKING:
    from engram.models.lm import LM

__all__ = ["DOORS", "Door", "Reading", "go_on", "read"]


class Door(Protocol):
    """A way of running texts."""

    def read(self, lm: "LM", ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int, /) -> Reading:
        """See `engram.models.runs.read`."""
        ...

    def go_on(
        self,
        lm: "LM",
        reading: Reading,
        ids: Int[Tensor, "batch new"],
        real: Int[Tensor, "batch new"],
        keep: int,
        again: bool,
        /,
    ) -> Reading:
        """See `engram.models.runs.go_on`."""
        ...


DOORS: dict[str, Door] = {"decoder": decoder, "whole": whole}
"""The doors by their names (`lm.door`)."""


def read(
    lm: "LM", ids: Int[Tensor, "batch pos"], *, mask: Int[Tensor, "batch pos"] | None = None, keep: int = 1
) -> Reading:
    """Read prompts.

    Args:
        lm: the model.
        ids: token ids; rows shorter than the longest are padded on the left.
        mask: 1 at real tokens; all real when not given.
        keep: number of last positions whose logits are wanted (0 for all).
    """
    return DOORS[lm.door].read(lm, ids, ids.new_ones(ids.shape) if mask is None else mask, keep)


def go_on(
    lm: "LM",
    reading: Reading,
    ids: Int[Tensor, "batch new"],
    *,
    real: Int[Tensor, "batch new"] | None = None,
    keep: int = 0,
    again: bool = False,
) -> Reading:
    """Read what follows.

    Args:
        lm: the model.
        reading: what was read before, the same rows.
        ids: token ids; rows shorter than the longest are padded on the right.
        real: 1 at real tokens; all real when not given.
        keep: number of last positions whose logits are wanted (0 for all the new ones).
        again: whether `reading` will be continued another time, too: nothing is kept of these tokens then. Without it
            the result goes on, and `reading` is spent.
    """
    return DOORS[lm.door].go_on(lm, reading, ids, ids.new_ones(ids.shape) if real is None else real, keep, again)
