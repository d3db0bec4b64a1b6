"""Prompts run once, and then only what a change at (a site of layer l, the subject's last token) can reach.

`Tail` gives logits under a change of a site at one position per row. Layers up to l and positions before the subject's
last token were computed once; where a family cannot be resumed, whole passes give the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.editing.parts.prompts import Batch
from engram.models.hooks import Site, patch, record
from engram.models.resume import Prefix, prefill, resume

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Tail:
    """What is left to run for some rows.

    Args:
        lm: the model.
        site: what is changed.
        keep: number of last positions whose logits are wanted.
        batch: the rows.
        states: what enters the first block to run, over the last columns; None to run whole passes.
        prefix: keys and values of the columns before.
    """

    lm: "LM"
    site: Site
    keep: int
    batch: Batch
    states: Float[Tensor, "batch pos d_model"] | None
    prefix: Prefix | None

    def logits(self, change: Float[Tensor, "batch width"]) -> Float[Tensor, "batch keep vocab"]:
        """Return logits (fp32) when the site of each row is changed by so much at its subject's last token."""
        if self.states is None:
            with patch(self.lm, {self.site: self._adding(change, 0)}):
                logits = self.lm.forward(self.batch.ids, mask=self.batch.mask, keep=self.keep)
            return logits.float()
        width = self.states.shape[1]
        add = self._adding(change, self.batch.ids.shape[1] - width)
        last_only = self.keep == 1 and self.lm.can_skip_last
        if _is_added(self.lm, self.site):
            return self._resumed(add(self.states), self.site.layer + 1, last_only)
        with patch(self.lm, {self.site: add}):
            last_only = last_only and self.site.layer < self.lm.n_layers - 1
            return self._resumed(self.states, self.site.layer, last_only)

    def of(self, facts: list[int]) -> "Tail":
        """Return the part that belongs to some facts; their numbers stay."""
        index = torch.tensor([i for i, row in enumerate(self.batch.rows) if row.fact in facts])
        batch = Batch(
            tuple(self.batch.rows[i] for i in index.tolist()),
            *(t[index] for t in (self.batch.ids, self.batch.mask, self.batch.lookup, self.batch.fact)),
        )
        states = None if self.states is None else self.states[index.to(self.states.device)]
        return Tail(self.lm, self.site, self.keep, batch, states, _rows(self.prefix, index))

    def _resumed(self, states: Tensor, layer: int, last_only: bool) -> Tensor:
        return resume(
            self.lm,
            states,
            layer=layer,
            prefix=self.prefix,
            mask=self.batch.mask,
            keep=self.keep,
            last_only=last_only,
        ).float()

    def _adding(self, change: Tensor, columns_before: int) -> Callable[[Tensor], Tensor]:
        def add(tensor: Tensor) -> Tensor:
            rows = torch.arange(tensor.shape[0], device=tensor.device)
            columns = (self.batch.lookup - columns_before).to(tensor.device)
            return tensor.index_put((rows, columns), change.to(tensor), accumulate=True)

        return add


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What one pass over all rows shows.

    Args:
        tail: for the passes under a change.
        keys: key of the site's layer at the subject's last token, fp32.
        values: what the site has there, fp32.
        logits: the last positions' logits, fp32.
    """

    tail: Tail
    keys: Float[Tensor, "batch d_mlp"]
    values: Float[Tensor, "batch width"]
    logits: Float[Tensor, "batch keep vocab"]


@torch.no_grad()
def first_pass(lm: "LM", batch: Batch, site: Site | int, *, keep: int, plain: bool = False) -> FirstPass:
    """Run all rows once.

    Args:
        lm: the model.
        batch: rows padded on the left.
        site: what will be changed; a number stands for the MLP's output of that layer.
        keep: number of last positions whose logits will be wanted.
        plain: run whole passes later, also where that is not needed.

    Raises:
        NumericalError: a key, a value or the output is NaN or infinite.
    """
    value = Site("mlp", site) if isinstance(site, int) else site
    key = Site("key", value.layer)
    state = Site("state", value.layer if _is_added(lm, value) else max(0, value.layer - 1))
    with record(lm, {key, value, state}) as seen:
        if plain or not lm.can_resume or not (value.layer or _is_added(lm, value)) or value.kind == "embed":
            logits = lm.forward(batch.ids, mask=batch.mask, keep=keep)
            tail = Tail(lm, value, keep, batch, None, None)
        else:
            full = prefill(lm, batch.ids, mask=batch.mask, keep=keep)
            width, logits = max(batch.suffix, keep), full.logits
            prefix = _kept(full.prefix, batch.ids.shape[1] - width, state.layer + 1)
            tail = Tail(lm, value, keep, batch, seen[state][:, -width:], prefix)
    result = FirstPass(tail, _at(seen[key], batch.lookup), _at(seen[value], batch.lookup), logits.float())
    lm.require_finite(result.keys, f"The {key}")
    lm.require_finite(result.values, f"The {value}")
    lm.require_finite(result.logits, "The output before the edit")
    return result


def _is_added(lm: "LM", site: Site) -> bool:
    """Say whether a change there is the same change of the state behind the block."""
    return site.kind == "state" or (site.kind == "mlp" and lm.adds_mlp_to_state)


def _at(tensor: Tensor, columns: Int[Tensor, " batch"]) -> Tensor:
    index = columns.to(tensor.device)
    return tensor[torch.arange(len(index), device=tensor.device), index].float()


def _kept(prefix: Prefix, position: int, layer: int) -> Prefix:
    """Keep the columns before `position`, copied so that the others are freed; nothing of layers that run no more."""
    cut = prefix.until(position)
    return Prefix(
        tuple(_blank(k) if i < layer else k.contiguous() for i, k in enumerate(cut.keys)),
        tuple(_blank(v) if i < layer else v.contiguous() for i, v in enumerate(cut.values)),
    )


def _blank(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape that takes no memory: masks are sized by the first layer's cache."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _rows(prefix: Prefix | None, index: Tensor) -> Prefix | None:
    if prefix is None:
        return None
    return Prefix(
        tuple(k[index.to(k.device)] for k in prefix.keys), tuple(v[index.to(v.device)] for v in prefix.values)
    )
