"""The door of decoders that keep keys and values: what follows runs over the new positions only."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from engram.models.resume import Prefix
from engram.models.runs.reading import Reading

if TYPE_CHECKING:
    from engram.models.lm import LM


def read(lm: "LM", ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int) -> Reading:
    """Run the prompts and keep the keys and values of every position and layer."""
    cache = DynamicCache()  # without a config every layer keeps all positions, sliding windows included
    return Reading(lm.forward(ids, mask=mask, cache=cache, keep=keep), mask, cache)


def go_on(
    lm: "LM",
    reading: Reading,
    ids: Int[Tensor, "batch new"],
    real: Int[Tensor, "batch new"],
    keep: int,
    again: bool,
) -> Reading:
    """Run the new positions behind what is kept."""
    mask = torch.cat([reading.mask, real], dim=1)
    cache: Any = Prefix.of(lm, reading.memory).cache() if again else reading.memory
    return Reading(lm.forward(ids, mask=mask, cache=cache, keep=keep), mask, None if again else cache)
