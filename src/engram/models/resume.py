"""Running the network from the middle: from layer l, from position t, with the earlier positions cached.

Nothing that happens at (layer l, position t) changes layers below l or positions before t. `prefill` runs a
prompt once and keeps its keys and values; `resume` runs only what is left. The model's own forward does the work, so
masks, rotary angles and logit scaling are the family's own: blocks below l are skipped, and what enters block l is
replaced. Rows may join while the pass climbs (`arrivals` is asked at every block), which is how a causal trace restores
states at all layers in one pass.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from engram.errors import SettingError, UnsupportedModel
from engram.models.hooks import on_block_input, patch
from engram.models.passes import Text
from engram.models.sites import Site
from engram.models.skipping import rows_of_last_position, skipping
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models.lm import LM

Arrivals = Callable[[int, Tensor | None], Tensor]
"""Given a layer (n_layers = after the last block) and the rows that climbed so far, return the rows that go on.

The tensor is [rows pos d_model]; it is `None` at the first layer. The number of rows must stay a multiple of the
prefix's batch, and row r continues the prefix's row r modulo that batch.
"""


@dataclass(frozen=True, slots=True, repr=False)
class Prefix(Shown):
    """Keys and values of the positions that need no computing, per layer.

    Args:
        keys: for each layer [batch head pos d_head].
        values: the same.
        text: what edits chose while these positions were read.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    text: Text | None = None

    @classmethod
    def of(cls, lm: "LM", cache: DynamicCache) -> "Prefix":
        """Return what a pass left in its cache.

        Raises:
            UnsupportedModel: nothing.
        """
        layers: list[Any] = cache.layers
        if not layers:
            raise UnsupportedModel(f"{lm.name} keeps no keys and values, so it runs whole (lm.can_continue is False).")
        return cls(tuple(x.keys for x in layers), tuple(x.values for x in layers), lm.passes.text_of(cache))

    @property
    def length(self) -> int:
        """Number of cached positions."""
        return self.keys[0].shape[-2]

    @property
    def batch(self) -> int:
        """Number of cached rows."""
        return self.keys[0].shape[0]

    def until(self, position: int) -> "Prefix":
        """Return only the positions before `position` (views, no copy)."""
        keys, values = (tuple(x[..., :position, :] for x in xs) for xs in (self.keys, self.values))
        return Prefix(keys, values, None if self.text is None else self.text.until(position))

    def cache(self) -> DynamicCache:
        """Return a cache for the model's forward that reads this prefix and keeps nothing of what follows."""
        cache: Any = _PrefixCache()
        cache.text = self.text
        cache.layers = [_PrefixLayer(k, v) for k, v in zip(self.keys, self.values, strict=True)]
        return cache


class _PrefixCache(DynamicCache):
    text: Text | None = None


class _PrefixLayer(DynamicLayer):
    """A cache layer that serves a fixed prefix to any multiple of its batch and stores nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self._prefix = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def get_seq_length(self, *_: Any) -> int:
        return self._prefix[0].shape[-2]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._prefix
        return _behind(keys, key_states), _behind(values, value_states)


def _behind(prefix: Tensor, new: Tensor) -> Tensor:
    if prefix.shape[-2] == 0:
        return new
    times = new.shape[0] // prefix.shape[0]
    repeated = prefix if times == 1 else prefix.repeat(times, 1, 1, 1)
    return torch.cat([repeated.to(new.device), new], dim=-2)


@dataclass(frozen=True, slots=True, repr=False)
class Prefilled(Shown):
    """A finished forward pass over some prompts.

    Args:
        logits: [batch keep vocab], the last `keep` positions.
        prefix: keys and values of all positions.
        mask: [batch pos], 1 at real tokens.
    """

    logits: Float[Tensor, "batch keep vocab"]
    prefix: Prefix
    mask: Int[Tensor, "batch pos"]


def prefill(
    lm: "LM", ids: Int[Tensor, "batch pos"], *, mask: Int[Tensor, "batch pos"] | None = None, keep: int = 1
) -> Prefilled:
    """Run whole prompts once and keep the keys and values of every position and layer.

    Args:
        lm: the model.
        ids: token ids; rows shorter than the longest are padded on the left.
        mask: 1 at real tokens; all real when not given.
        keep: number of last positions whose logits are wanted (0 for all).

    Raises:
        UnsupportedModel: the model keeps no keys and values.
    """
    cache = DynamicCache()  # without a config every layer keeps all positions, sliding windows included
    logits = lm.forward(ids, mask=mask, cache=cache, keep=keep)
    return Prefilled(logits, Prefix.of(lm, cache), torch.ones_like(ids) if mask is None else mask)


def resume(
    lm: "LM",
    arrivals: Arrivals | Float[Tensor, "batch pos d_model"],
    *,
    layer: int,
    positions: int | None = None,
    prefix: Prefix | None = None,
    mask: Int[Tensor, "batch all_pos"] | None = None,
    keep: int | Int[Tensor, " keep"] = 1,
    last_only: bool = False,
) -> Float[Tensor, "batch keep vocab"]:
    """Run the blocks from `layer` on, over the positions after `prefix`, and return logits.

    Equal to the full pass within 1e-5 in fp32 for every family that `lm.can_resume`. Gradients flow from the logits to
    what arrived.

    Args:
        lm: the model.
        arrivals: what enters block `layer` (the state of layer - 1; for layer 0 the embeddings as they enter block 0),
            or a function asked at every block for the rows that go on.
        layer: the first block to run, 0..n_layers; n_layers runs only the final norm and the unembedding.
        positions: number of positions that run; needed when `arrivals` is a function.
        prefix: keys and values of the earlier positions; none when the run starts at position 0.
        mask: [batch, prefix and run positions], 1 at real tokens, where rows are padded. Rows then are exactly these.
        keep: number of last positions whose logits are wanted (0 for all), or the indices of the wanted ones.
        last_only: skip what the last block's other positions do not need. Only with `keep=1`, and only for a model
            that `lm.can_skip_last`.

    Raises:
        SettingError: `arrivals` is a function and `positions` is not given.
    """
    arrive = _constant(arrivals, layer) if isinstance(arrivals, Tensor) else arrivals
    width = arrivals.shape[1] if isinstance(arrivals, Tensor) else positions
    if width is None:
        raise SettingError("resume needs positions=... when arrivals is a function.")
    rows = 1 if mask is None else mask.shape[0]
    if prefix is None and mask is None and isinstance(arrivals, Tensor):
        rows = arrivals.shape[0]
    with ExitStack() as stack:
        stack.enter_context(skipping(lm.blocks[:layer], as_tuple=lm.block_returns_tuple))
        for index in range(layer, lm.n_layers):
            stack.enter_context(on_block_input(lm, index, _asked(arrive, index, first=index == layer)))
        final = _asked(arrive, lm.n_layers, first=layer == lm.n_layers)
        stack.enter_context(patch(lm, {Site("state", lm.n_layers - 1): final}))
        if last_only and width > 1:
            stack.enter_context(rows_of_last_position(lm, lm.n_layers - 1))
        return lm.forward_from(
            rows=rows, positions=width, cache=None if prefix is None else prefix.cache(), mask=mask, keep=keep
        )


def _asked(arrive: Arrivals, layer: int, *, first: bool) -> Callable[[Tensor], Tensor]:
    return lambda hidden: arrive(layer, None if first else hidden)


def _constant(states: Tensor, layer: int) -> Arrivals:
    def arrive(at: int, hidden: Tensor | None) -> Tensor:
        return states if at == layer or hidden is None else hidden

    return arrive
