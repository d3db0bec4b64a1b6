"""Many edits in one batch: row i of every forward pass is the model under edit i."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engram.editing.applying import projection, require_fit
from engram.editing.edit import Edit
from engram.editing.updates import LowRank, Update, side_path
from engram.errors import EditError
from engram.models.hooks import on_projection
from engram.models.linear import is_conv1d

if TYPE_CHECKING:
    from engram.models import LM


@contextmanager
def applied_rows(lm: "LM", edits: Sequence[Edit | None]) -> Generator["LM"]:
    """Let row i of every batch behave as under edit i; `None` leaves a row unedited.

    Low-rank changes of all rows are computed at once. Use it with functions that keep rows in order:
    `LM.forward`, `score_batch`, `generate_batch`, `prefill`, `resume`.

    Args:
        lm: the model; its weights are never touched.
        edits: one per row of the batches that will be run.

    Raises:
        EditMismatch: an edit was made for another model.
        EditError: a batch with another number of rows is run (out of the forward pass).
    """
    for edit in {id(e): e for e in edits if e is not None}.values():
        require_fit(lm, edit)
    names = dict.fromkeys(name for edit in edits if edit is not None for name in edit.updates)
    with ExitStack() as stack:
        for name in names:
            module, _ = projection(lm, name)
            rows = [None if edit is None else edit.updates.get(name) for edit in edits]
            change = _RowChange(rows, transposed=is_conv1d(module))
            stack.enter_context(on_projection(lm, name.rpartition(".")[0], change))
        yield lm


class _RowChange:
    """Adds to each row of a projection's output what its own update says."""

    def __init__(self, rows: Sequence[Update | None], *, transposed: bool) -> None:
        self._rows = rows
        self._transposed = transposed
        self._dense = [(i, u) for i, u in enumerate(rows) if u is not None and not isinstance(u, LowRank)]
        low = [(i, u) for i, u in enumerate(rows) if isinstance(u, LowRank)]
        self._where = torch.tensor([i for i, _ in low], dtype=torch.long)
        self._enter = _padded([u.left if transposed else u.right for _, u in low])
        self._leave = _padded([u.right if transposed else u.left for _, u in low])

    def __call__(self, inputs: Tensor, output: Tensor) -> Tensor:
        if output.shape[0] != len(self._rows):
            raise EditError(
                f"The batch has {output.shape[0]} row(s), but {len(self._rows)} edit(s) were given for rows."
            )
        self._move(output.device)
        inputs = inputs.to(output.device)
        total = output.float()
        if len(self._where):
            added = (inputs[self._where].float() @ self._enter) @ self._leave.mT
            total = total.index_add(0, self._where, added)
        for i, update in self._dense:
            added = side_path(update, inputs[i], transposed=self._transposed)
            total = total.index_add(0, torch.tensor([i], device=total.device), added.expand_as(total[i]).unsqueeze(0))
        return total.to(output.dtype)

    def _move(self, device: torch.device) -> None:
        if self._where.device != device:
            self._where, self._enter, self._leave = (t.to(device) for t in (self._where, self._enter, self._leave))
            self._dense = [(i, update.to(device)) for i, update in self._dense]


def _padded(factors: list[Tensor]) -> Tensor:
    """Stack factors of different ranks, filled up with zeros: [row size rank]."""
    rank = max((f.shape[1] for f in factors), default=0)
    if not factors:
        return torch.empty(0)
    return torch.stack([torch.nn.functional.pad(f.float(), (0, rank - f.shape[1])) for f in factors])
