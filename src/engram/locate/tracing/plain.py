"""The plain path: whole forward passes with patches, nothing shared and nothing skipped.

The reference that the fast path must equal, and what runs where a family cannot be run from the middle.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from engram.locate.tracing.corruption import Corruption
from engram.locate.tracing.metrics import Metric
from engram.locate.tracing.passes import Clean, Corrupted
from engram.locate.tracing.windows import Restoration, TraceSite
from engram.models import Site, patch

if TYPE_CHECKING:
    from engram.models import LM


def restore_plainly(
    lm: "LM",
    clean: Clean,
    corruption: Corruption,
    corrupted: Corrupted,
    metric: Metric,
    restorations: Sequence[Restoration],
    *,
    severed: TraceSite | None,
) -> Float[Tensor, "restoration sample"]:
    """Return the metric of every restoration and sample, from one pass over all of them.

    Args:
        lm: the model.
        clean: the clean run, with the values that restorations restore.
        corruption: the corrupted prompts.
        corrupted: their run, with the values of the severed kind.
        metric: what is read off.
        restorations: what is restored.
        severed: outputs of this kind at the restored token stay corrupted in all layers.

    Raises:
        NumericalError: NaN or infinity in the output.
    """
    with corruption.applied(lm), patch(lm, _changes(lm, clean, corrupted, restorations, severed)):
        logits = lm.forward(corruption.ids.repeat(len(restorations), 1), keep=1)[:, -1]
    lm.require_finite(logits, "With a restored state the output")
    return metric(logits).unflatten(0, (len(restorations), corruption.samples))


def _changes(
    lm: "LM", clean: Clean, corrupted: Corrupted, restorations: Sequence[Restoration], severed: TraceSite | None
) -> dict[Site, Callable[[Tensor], Tensor]]:
    """Row [restoration × sample] gets its own restoration's restoration."""
    changes: dict[Site, Callable[[Tensor], Tensor]] = {}
    for layer in range(lm.n_layers):
        for kind in {restoration.site for restoration in restorations}:
            rows = [i for i, c in enumerate(restorations) if c.site == kind and c.low <= layer < c.high]
            if rows:
                site = Site(kind, layer)
                places = [restorations[i].position for i in rows]
                changes[site] = _put(rows, places, clean.values[site], len(restorations))
        if severed is not None:
            site = Site(severed, layer)
            places = [restoration.position for restoration in restorations]
            changes[site] = _put(list(range(len(restorations))), places, corrupted.values[site], len(restorations))
    return changes


def _put(rows: list[int], places: list[int], values: Tensor, many: int) -> Callable[[Tensor], Tensor]:
    """Put values [pos d_model] or [sample pos d_model] at one token of each row's samples."""

    def change(output: Tensor) -> Tensor:
        changed = output.clone().unflatten(0, (many, -1))
        for row, place in zip(rows, places, strict=True):
            changed[row, :, place] = values[..., place, :].to(output.device)
        return changed.flatten(0, 1)

    return change
