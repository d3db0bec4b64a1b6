"""Edits on models: beside the weights for as long as a `with` block, or into the weights and back, bit for bit.

In floating point W + D - D is not W. So what `apply_` overwrites is kept with the model, and a weight under several
edits is always the original plus the applied changes in their order: taking any one of them back is computed anew
from the original, and a weight that is not what it should be was changed by somebody else.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engram.editing.changes import Change, WeightChange
from engram.editing.changes.weight import projection
from engram.editing.words import remark_on
from engram.errors import EditError, EditMismatch, NumericalError
from engram.given import require_lm
from engram.models.linear import is_quantised, passes_gradients

if TYPE_CHECKING:
    from engram.editing.edit import Edit
    from engram.models import LM


@dataclass(slots=True)
class Overwritten:
    """A weight that `apply_` changed.

    Args:
        original: the weight as it was before the first edit.
        updates: the applied changes by the edit's digest, in order.
    """

    original: Tensor
    updates: dict[str, WeightChange] = field(default_factory=dict[str, WeightChange])

    def value(self, updates: dict[str, WeightChange]) -> Tensor:
        """Return the original with some changes, in the weight's dtype; the sum is fp32 or wider."""
        if not updates:
            return self.original
        total = self.original.to(torch.promote_types(self.original.dtype, torch.float32))
        for update in updates.values():
            total = total + update.to(total.device).dense().to(total.dtype)
        return total.to(self.original.dtype)


def require_fit(lm: "LM", edit: "Edit") -> None:
    """See `Edit.require_fit`."""
    require_lm(lm)
    if edit.fingerprint != lm.fingerprint:
        raise EditMismatch(
            f"This edit was made for {edit.model} (fingerprint {edit.fingerprint}), but {lm.name} has fingerprint "
            f"{lm.fingerprint}. Load the model it was made for, or make the edit again."
        )
    for change in edit.changes:
        change.require_fit(lm)


@contextmanager
def acting(lm: "LM", edits: "Sequence[Edit | None]") -> Generator[None]:
    """Let row i of every batch be the model under edit i; a single one holds for all rows. Weights act first.

    Raises:
        EditMismatch: an edit was made for another model or other shapes.
    """
    for edit in {id(e): e for e in edits if e is not None}.values():
        require_fit(lm, edit)
    with ExitStack() as stack:
        for rows in (*_weights(edits), *_gates([() if edit is None else edit.gates for edit in edits])):
            stack.enter_context(_beside(lm, rows))
        yield


@contextmanager
def _beside(lm: "LM", rows: Sequence[Change | None]) -> Generator[None]:
    """Let changes of any kinds and places act beside each other, one per row."""
    columns: dict[tuple[type[Change], str], list[Change | None]] = {}
    for i, change in enumerate(rows):
        if change is not None:
            columns.setdefault((type(change), change.where), [None] * len(rows))[i] = change
    with ExitStack() as stack:
        for (kind, _), column in columns.items():
            stack.enter_context(kind.beside(lm, column))
        yield


def _weights(edits: "Sequence[Edit | None]") -> list[list[Change | None]]:
    names = dict.fromkeys(name for edit in edits if edit is not None for name in edit.updates)
    return [[None if edit is None else edit.updates.get(name) for edit in edits] for name in names]


def _gates(rows: "Sequence[tuple[Change, ...]]") -> list[list[Change | None]]:
    """Return first the first changes of all rows, then the second ones, so that each row's act in its own order."""
    depth = max((len(gates) for gates in rows), default=0)
    return [[gates[k] if k < len(gates) else None for gates in rows] for k in range(depth)]


@contextmanager
def beside(lm: "LM", edit: "Edit") -> Generator[None]:
    """See `Edit.applied`."""
    with acting(lm, [edit]):
        remark_on(edit, lm.acting, lm.remarks)
        lm.acting.append(edit)
        try:
            yield
        finally:
            _forget(lm, edit)


@torch.no_grad()
def apply_(lm: "LM", edit: "Edit") -> None:
    """See `Edit.apply_`."""
    require_fit(lm, edit)
    ledger: dict[str, Overwritten] = lm.overwritten
    if edit.digest in lm.standing or any(edit.digest in kept.updates for kept in ledger.values()):
        raise EditError("This edit is applied to this model already. To apply it twice, apply `2 * edit`.")
    entries = {
        name: ledger.get(name) or Overwritten(parameter(lm, name, "overwriting it").clone()) for name in edit.updates
    }
    wanted = {name: {**entry.updates, edit.digest: edit.updates[name]} for name, entry in entries.items()}
    _write(lm, entries, wanted)
    if edit.gates:
        lm.standing[edit.digest] = stack = ExitStack()
        for rows in _gates([edit.gates]):
            stack.enter_context(_beside(lm, rows))
    remark_on(edit, lm.acting, lm.remarks)
    lm.acting.append(edit)


@torch.no_grad()
def revert_(lm: "LM", edit: "Edit") -> None:
    """See `Edit.revert_`."""
    ledger: dict[str, Overwritten] = lm.overwritten
    if not edit:
        return
    missing = any(name not in ledger or edit.digest not in ledger[name].updates for name in edit.updates)
    if missing or (edit.gates and edit.digest not in lm.standing):
        raise EditError(
            "This edit is not applied to this model, so there is nothing to take back. Only what apply_ wrote in this "
            "process can be reverted."
        )
    entries = {name: ledger[name] for name in edit.updates}
    wanted = {
        name: {digest: update for digest, update in entry.updates.items() if digest != edit.digest}
        for name, entry in entries.items()
    }
    _write(lm, entries, wanted)
    if edit.gates:
        lm.standing.pop(edit.digest).close()
    _forget(lm, edit)


def _forget(lm: "LM", edit: "Edit") -> None:
    """Take an edit, or a copy of it, from those that act."""
    same = [acting for acting in lm.acting if acting is edit] or [e for e in lm.acting if e.digest == edit.digest]
    if same:
        lm.acting.remove(same[-1])


def _write(lm: "LM", entries: dict[str, Overwritten], wanted: dict[str, dict[str, WeightChange]]) -> None:
    """Check everything, compute everything, and only then write."""
    for name, entry in entries.items():
        if not torch.equal(parameter(lm, name, "overwriting it"), entry.value(entry.updates)):
            raise EditMismatch(
                f"{name!r} of {lm.name} is not what Engram wrote there: something else changed it meanwhile. "
                f"Nothing was touched. Reload the model."
            )
    values = {name: entry.value(wanted[name]) for name, entry in entries.items()}
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise NumericalError(f"{name!r} would contain NaN or infinity in {value.dtype}; nothing was written.")
    for name, value in values.items():
        parameter(lm, name, "overwriting it").copy_(value)
        entries[name].updates = wanted[name]
        if wanted[name]:
            lm.overwritten[name] = entries[name]
        else:
            lm.overwritten.pop(name, None)


def parameter(lm: "LM", name: str, doing: str) -> Tensor:
    """Return a weight that is in memory.

    Raises:
        EditError: it is quantised, or accelerate keeps it elsewhere; `doing` says for what it was needed.
    """
    module, leaf = projection(lm, name)
    require_plain(lm, name, doing)
    weight: Tensor = getattr(module, leaf).data
    if weight.device.type == "meta":
        raise EditError(
            f"{name!r} is offloaded by accelerate, which rules out {doing}. Use `with edit.applied(lm):`, which works "
            f"beside the weights, or load the model without offloading."
        )
    return weight


def require_plain(lm: "LM", name: str, doing: str) -> None:
    """Check that numbers can be added to a weight.

    Raises:
        EditError: it is quantised; `doing` says for what it was needed.
    """
    module, _ = projection(lm, name)
    if is_quantised(module):
        raise EditError(
            f"{name!r} is quantised ({type(module).__name__}): nothing can be added to its codes, which rules out "
            f"{doing}. Use a ROME edit and `with edit.applied(lm):`, which works beside the weights, or load the model "
            f"without quantisation."
        )


def require_gradients(lm: "LM") -> None:
    """Check that gradients pass all layers.

    Raises:
        EditError: quantised modules stop them.
    """
    kinds = {type(module): module for module in lm.model.modules() if is_quantised(module)}
    for kind, module in kinds.items():
        if not passes_gradients(module, lm.device, lm.dtype):
            raise EditError(
                f"{lm.name} is quantised with modules that gradients do not pass ({kind.__module__}.{kind.__name__}), "
                f"and edits are found by gradients. Load it without quantisation, or with one made for training."
            )
