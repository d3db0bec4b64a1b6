"""The passes that every trace shares: the clean one, the corrupted one, and one for each block's lone restored output.

clean       one row; its states (and MLP or attention outputs) are what restorations put back
corrupted   one row per sample; its states are where restored rows start, its keys and values what they attend to
lone        per layer and token: the block's output when only this block's MLP (or attention) output at this token
outputs     is clean. All tokens of all layers come from one pass, because inside a block such a change stays at its
            token: every block gets the corrupted state again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.locate.tracing.corruption import Corruption
from engram.locate.tracing.windows import TraceSite
from engram.models import Prefix, Site, patch, prefill, record, resume
from engram.models.hooks import on_block_input

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Clean:
    """The clean run.

    Args:
        ids: its token ids.
        logits: at the last position.
        values: per site [pos d_model].
    """

    ids: Int[Tensor, "1 pos"]
    logits: Float[Tensor, "1 vocab"]
    values: dict[Site, Tensor]


@dataclass(frozen=True, slots=True)
class Corrupted:
    """The corrupted run of some samples.

    Args:
        logits: at the last position.
        values: per site [sample pos d_model].
        entry: what enters block 0, [sample pos d_model]; empty unless asked for.
        prefix: keys and values of all positions; only where the fast path needs them.
    """

    logits: Float[Tensor, "sample vocab"]
    values: dict[Site, Tensor]
    entry: list[Tensor] = field(default_factory=list[Tensor])
    prefix: Prefix | None = None

    def entering(self, layer: int) -> Float[Tensor, "sample pos d_model"]:
        """Return what enters a block."""
        return self.entry[0] if layer == 0 else self.values[Site("state", layer - 1)]


def sites_of(lm: "LM", kinds: Iterable[TraceSite]) -> list[Site]:
    """Return the sites of some kinds in all layers."""
    return [Site(kind, layer) for kind in kinds for layer in range(lm.n_layers)]


def run_clean(lm: "LM", ids: Int[Tensor, "1 pos"], kinds: Iterable[TraceSite]) -> Clean:
    """Run the clean prompt.

    Raises:
        NumericalError: NaN or infinity in a state; the message names the first such layer.
    """
    states = sites_of(lm, ["state"])
    wanted = {*states, *sites_of(lm, kinds)}
    with record(lm, wanted) as seen:
        logits = lm.forward(ids, keep=1)[:, -1]
    _require_finite(lm, seen, states, logits, "clean")
    return Clean(ids, logits, {site: tensor[0] for site, tensor in seen.items()})


def run_corrupted(lm: "LM", corruption: Corruption, kinds: Iterable[TraceSite], *, for_resuming: bool) -> Corrupted:
    """Run the corrupted prompts.

    Args:
        lm: the model.
        corruption: the prompts.
        kinds: what to record.
        for_resuming: also keep states, keys and values, and what enters block 0.

    Raises:
        NumericalError: NaN or infinity; the message names the first such layer.
    """
    states = sites_of(lm, ["state"])
    wanted = {*(states if for_resuming else []), *sites_of(lm, kinds)}
    entry: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        entry.append(hidden.clone())
        return hidden

    prefix = None
    with corruption.applied(lm), record(lm, wanted) as seen:
        if for_resuming:
            with on_block_input(lm, 0, keep):
                full = prefill(lm, corruption.ids)
            logits, prefix = full.logits[:, -1], full.prefix
        else:
            logits = lm.forward(corruption.ids, keep=1)[:, -1]
    _require_finite(lm, seen, states if for_resuming else [], logits, "corrupted")
    return Corrupted(logits, dict(seen), entry, prefix)


def run_lone_outputs(
    lm: "LM", clean: Clean, corrupted: Corrupted, kinds: Sequence[TraceSite], *, start: int, severed: TraceSite | None
) -> dict[Site, Float[Tensor, "sample pos d_model"]]:
    """Return, per site, the block's output when only this block's output of this kind is clean at each token.

    Args:
        lm: the model.
        clean: the clean run, with the values of `kinds`.
        corrupted: the corrupted run, for resuming.
        kinds: `mlp` and `attn`, or one of them.
        start: first position that matters; positions count from here in the result.
        severed: outputs of this kind stay corrupted.
    """
    if not kinds:
        return {}
    samples, many = len(corrupted.logits), len(kinds)

    def restored(kind: TraceSite, layer: int) -> Callable[[Tensor], Tensor]:
        block = slice(kinds.index(kind) * samples, (kinds.index(kind) + 1) * samples)

        def change(output: Tensor) -> Tensor:
            changed = output.clone()
            changed[block] = clean.values[Site(kind, layer)][start:].to(output.device)
            return changed

        return change

    def held(layer: int) -> Callable[[Tensor], Tensor]:
        site = Site(severed or "mlp", layer)
        return lambda output: corrupted.values[site][:, start:].to(output.device).repeat(many, 1, 1)

    changes = {Site(kind, layer): restored(kind, layer) for kind in kinds for layer in range(lm.n_layers)}
    if severed is not None:
        changes |= {Site(severed, layer): held(layer) for layer in range(lm.n_layers)}

    def again(layer: int, hidden: Tensor | None) -> Tensor:
        if layer == lm.n_layers and hidden is not None:
            return hidden
        return corrupted.entering(layer)[:, start:].repeat(many, 1, 1)

    states = sites_of(lm, ["state"])
    prefix = corrupted.prefix.until(start) if corrupted.prefix is not None and start else None
    width = clean.ids.shape[1] - start
    with ExitStack() as stack:
        seen = stack.enter_context(record(lm, states, stop=True))
        stack.enter_context(patch(lm, changes))
        resume(lm, again, layer=0, positions=width, prefix=prefix)
    return {
        Site(kind, state.layer): tensor.unflatten(0, (many, samples))[k]
        for state, tensor in seen.items()
        for k, kind in enumerate(kinds)
    }


def _require_finite(lm: "LM", seen: Mapping[Site, Tensor], states: list[Site], logits: Tensor, run: str) -> None:
    if bool(torch.isfinite(logits).all()):
        return
    for site in states:
        lm.require_finite(seen[site], f"In the {run} run the {site}")
    lm.require_finite(logits, f"In the {run} run the output")
