"""The fast path: rows that join while a pass climbs the network (DESIGN §4)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.locate.metrics import Metric
from engram.locate.passes import Clean, Corrupted
from engram.locate.staircase import Climb, Group
from engram.locate.windows import TraceSite
from engram.models import Site, patch, resume

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Footing:
    """What a climb stands on.

    Args:
        clean: the clean run.
        corrupted: the corrupted run of these samples.
        first: see `passes.run_first`; positions count from `first_start`.
        first_start: first position of `first`.
        severed: outputs of this kind at the restored token stay corrupted.
    """

    clean: Clean
    corrupted: Corrupted
    first: dict[Site, Tensor]
    first_start: int
    severed: TraceSite | None

    @property
    def samples(self) -> int:
        """Number of corrupted rows."""
        return len(self.corrupted.logits)

    def joining(self, group: Group, start: int) -> Float[Tensor, "sample pos d_model"]:
        """Return the states from `start` on with which a group joins."""
        cell = group.cell
        state = Site("state", cell.low)
        rows = self.corrupted.values[state][:, start:].clone()
        if cell.site == "state":
            rows[:, cell.position - start] = self.clean.values[state][cell.position]
        else:
            rows[:, cell.position - start] = self.first[Site(cell.site, cell.low)][:, cell.position - self.first_start]
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
            layer=climb.first,
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
    for layer in range(climb.first, lm.n_layers):
        here = [(i, g.cell) for i, g in enumerate(climb.groups) if g.joins <= layer]
        if layer == lm.n_layers - 1:  # the other positions' outputs no longer matter, and may not be computed
            here = [(i, cell) for i, cell in here if cell.position == last]
        for kind in ("mlp", "attn"):
            site = Site(kind, layer)
            restored = [(i, cell.position) for i, cell in here if cell.site == kind and layer < cell.high]
            if restored:
                changes[site] = _put(restored, footing.clean.values[site], last, footing.samples)
        if footing.severed is not None and here:
            site = Site(footing.severed, layer)
            held = [(i, cell.position) for i, cell in here]
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
