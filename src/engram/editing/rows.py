"""Many edits in one batch: row i of every forward pass is the model under edit i."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engram.editing.applying import acting
from engram.editing.edit import Edit

if TYPE_CHECKING:
    from engram.models import LM


@contextmanager
def applied_rows(lm: "LM", edits: Sequence[Edit | None]) -> Generator["LM"]:
    """Let row i of every batch behave as under edit i; `None` leaves a row unedited.

    Rows that share an edit are computed together. Use it with functions that keep rows in order:
    `LM.forward`, `score_batch`, `generate_batch`, `prefill`, `resume`.

    Args:
        lm: the model; its weights are never touched.
        edits: one per row of the batches that will be run; a single one holds for all rows.

    Raises:
        EditMismatch: an edit was made for another model.
        EditError: a batch with another number of rows is run (out of the forward pass).
    """
    with acting(lm, edits):
        yield lm
