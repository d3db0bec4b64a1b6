"""The fast path: rows that join while a pass climbs the network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.locate.tracing.metrics import Metric
from engram.locate.tracing.passes import Clean, Corrupted
from engram.locate.tracing.staircase import Climb, Group
from engram.locate.tracing.windows import TraceSite
from engram.models import Site, patch, resume

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Footing:
    """What a climb stands on.

    Args:
        clean: the clean run.
        corrupted: the corrupted run of these samples.
        lone_outputs: see `passes.run_lone_outputs`; positions count from `start`.
        start: first position of `lone_outputs`.
        severed: outputs of this kind at the restored token stay corrupted.
    """

    clean: Clean
    corrupted: Corrupted
    lone_outputs: dict[Site, Tensor]
    start: int
    severed: TraceSite | None

    @property
    def samples(self) -> int:
        """Number of corrupted rows."""
        return len(self.corrupted.logits)

    def joining(self, group: Group, start: int) -> Float[Tensor, "sample pos d_model"]:
        """Return the states from `start` on with which a group joins."""
        site, position, low = group.restoration.site, group.restoration.position, group.restoration.low
        state = Site("state", low)
        rows = self.corrupted.values[state][:, start:].clone()
        if site == "state":
            rows[:, position - start] = self.clean.values[state][position]
        else:
            rows[:, position - start] = self.lone_outputs[Site(site, low)][:, position - self.start]
        return rows


def climb_once(lm: "LM", footing: Footing, climb: Climb, metric: Metric) -> Float[Tensor, "group sample"]:
    """Run one pass and return the metric of each of its groups.

    Raises:
        NumericalError: NaN or infinity in the output.
    """
    samples = footing.samples
    width = footing.clean.ids.shape[1] - climb.start

    def arrive(layer: int, hidden: Tensor | None) -> Tensor:
        new = [group for group in climb.groups if group.joins == layer]
        parts = [] if hidden is None else [hidden]
        for group in new:
            if group.source is None:
                rows = footing.joining(group, climb.start)
                parts.append(rows if hidden is None else rows.to(hidden.device))
            elif hidden is not None:
                parts.append(hidden[group.source * samples : (group.source + 1) * samples])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    prefix = footing.corrupted.prefix
    last_only = lm.can_skip_last  # found out by passes of its own, which no change of ours may touch
    with patch(lm, _changes(lm, footing, climb)):
        logits = resume(
            lm,
            arrive,
            layer=climb.entry_block,
            positions=width,
            prefix=prefix.until(climb.start) if prefix is not None and climb.start else None,
            last_only=last_only,
        )[:, -1]
    lm.require_finite(logits, "With a restored state the output")
    return metric(logits).unflatten(0, (len(climb.groups), samples))


def _changes(lm: "LM", footing: Footing, climb: Climb) -> dict[Site, Callable[[Tensor], Tensor]]:
    """Restore windows layer by layer, and hold what is severed."""
    last = footing.clean.ids.shape[1] - 1
    changes: dict[Site, Callable[[Tensor], Tensor]] = {}
    for layer in range(climb.entry_block, lm.n_layers):
        here = [(i, g.restoration) for i, g in enumerate(climb.groups) if g.joins <= layer]
        if layer == lm.n_layers - 1:  # the other positions' outputs no longer matter, and may not be computed
            here = [(i, each) for i, each in here if each.position == last]
        for kind in ("mlp", "attn"):
            site = Site(kind, layer)
            restored = [(i, each.position) for i, each in here if each.site == kind and layer < each.high]
            if restored:
                changes[site] = _put(restored, footing.clean.values[site], last, footing.samples)
        if footing.severed is not None and here:
            site = Site(footing.severed, layer)
            held = [(i, each.position) for i, each in here]
            changes[site] = _put(held, footing.corrupted.values[site], last, footing.samples)
    return changes


def _put(places: list[tuple[int, int]], values: Tensor, last: int, samples: int) -> Callable[[Tensor], Tensor]:
    """Put values [pos d_model] or [sample pos d_model] at (group, position); positions end with the last one."""
    groups = torch.tensor([group for group, _ in places])
    positions = torch.tensor([position for _, position in places])
    wanted = values[positions].unsqueeze(1) if values.ndim == 2 else values[:, positions].transpose(0, 1)

    def change(output: Tensor) -> Tensor:
        changed = output.clone().unflatten(0, (-1, samples))
        shown = positions - last - 1  # counted from the end: a pass may show only the last position
        changed[groups.to(output.device), :, shown.to(output.device)] = wanted.to(output.device)
        return changed.flatten(0, 1)

    return change
