"""What is known of texts that were read."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from engram.showing import Shown


@dataclass(frozen=True, slots=True, repr=False)
class Reading(Shown):
    """Texts that were read, and may go on.

    Args:
        logits: of the last positions that were wanted.
        mask: 1 at real tokens, over all positions so far.
        memory: what the door keeps of these positions; None where nothing goes on.
    """

    logits: Float[Tensor, "batch keep vocab"]
    mask: Int[Tensor, "batch pos"]
    memory: Any
