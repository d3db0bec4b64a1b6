"""Changes of many rows at once: rows that share a change are computed together."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from engram.errors import EditError

if TYPE_CHECKING:
    from engram.editing.changes.weight import WeightChange

C = TypeVar("C")
FUSED, STACKED = 32, 8
"""Low-rank changes share two products up to this total rank; beyond it, those of up to this rank go row by row in one
batched product, and larger ones group by group. Measured: 64 rows at the shapes of mini and of GPT-2 XL."""


def require_rows(output: Tensor, rows: int) -> None:
    """Check that a batch has the rows for which changes were given.

    Raises:
        EditError: it has another number of rows.
    """
    if output.shape[0] != rows:
        raise EditError(f"The batch has {output.shape[0]} row(s), but {rows} edit(s) were given for rows.")


def together(rows: "Sequence[WeightChange | None]") -> Callable[[Tensor, Tensor], Tensor]:
    """Return what the changes of rows make of a projection's input and output."""
    if len(rows) == 1 and rows[0] is not None:
        return _all_rows(rows[0])
    many = grouped(rows)
    factors = [change.factors for change, _ in many]
    low = [pair for pair in factors if pair is not None]
    if len(low) == len(many) and sum(enter.shape[1] for enter, _ in low) <= FUSED:
        return _fused(low, [of for _, of in many], len(rows))
    if len(low) == len(many) and max(enter.shape[1] for enter, _ in low) <= STACKED:
        return _stacked(low, [of for _, of in many], len(rows))
    return _by_group(many, len(rows))


def grouped(rows: Sequence[C | None]) -> list[tuple[C, list[int]]]:
    """Return each change with the rows that share it."""
    found: dict[int, tuple[C, list[int]]] = {}
    for i, change in enumerate(rows):
        if change is not None:
            found.setdefault(id(change), (change, []))[1].append(i)
    return list(found.values())


def _all_rows(change: "WeightChange") -> Callable[[Tensor, Tensor], Tensor]:
    moved: dict[torch.device, WeightChange] = {}

    def side_path(inputs: Tensor, output: Tensor) -> Tensor:
        if output.device not in moved:
            moved[output.device] = change.to(output.device)
        return (output.float() + moved[output.device].added(inputs.to(output.device))).to(output.dtype)

    return side_path


def _by_group(many: "Sequence[tuple[WeightChange, list[int]]]", rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Go through the changes one by one, each for all rows that share it."""
    moved: dict[torch.device, list[tuple[WeightChange, Tensor]]] = {}

    def side_path(inputs: Tensor, output: Tensor) -> Tensor:
        require_rows(output, rows)
        device = output.device
        if device not in moved:
            moved[device] = [(change.to(device), torch.tensor(of, device=device)) for change, of in many]
        inputs, total = inputs.to(device), output.float()
        for change, of in moved[device]:
            added = change.added(inputs[of])
            total = total.index_add(0, of, added.expand(len(of), *total.shape[1:]))
        return total.to(output.dtype)

    return side_path


def _fused(
    factors: Sequence[tuple[Tensor, Tensor]], owners: Sequence[list[int]], rows: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Put the factors of all changes beside each other: two products for all rows, each keeping its own columns."""
    enter = torch.cat([first.float() for first, _ in factors], dim=1)
    leave = torch.cat([second.float() for _, second in factors], dim=1)
    foreign = torch.ones(rows, 1, enter.shape[1], dtype=torch.bool)
    begin = 0
    for (first, _), of in zip(factors, owners, strict=True):
        foreign[of, :, begin : begin + first.shape[1]] = False
        begin += first.shape[1]
    moved: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def side_path(inputs: Tensor, output: Tensor) -> Tensor:
        require_rows(output, rows)
        device = output.device
        if device not in moved:
            moved[device] = enter.to(device), leave.to(device), foreign.to(device)
        into, out_of, others = moved[device]
        met = (inputs.to(device).float() @ into).masked_fill(others, 0)
        return (output.float() + met @ out_of.T).to(output.dtype)

    return side_path


def _stacked(
    factors: Sequence[tuple[Tensor, Tensor]], owners: Sequence[list[int]], rows: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Give every row its own small factors, filled up with zeros to one rank, for one batched product."""
    rank = max(enter.shape[1] for enter, _ in factors)
    enter, leave = (
        torch.stack([pad(pair[i].float(), (0, rank - pair[i].shape[1])) for pair in factors]) for i in (0, 1)
    )
    where = torch.tensor([row for of in owners for row in of])
    which = torch.tensor([i for i, of in enumerate(owners) for _ in of])
    moved: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def side_path(inputs: Tensor, output: Tensor) -> Tensor:
        require_rows(output, rows)
        device = output.device
        if device not in moved:
            moved[device] = enter[which].to(device), leave[which].to(device), where.to(device)
        into, out_of, here = moved[device]
        added = (inputs.to(device)[here].float() @ into) @ out_of.mT
        return output.float().index_add(0, here, added).to(output.dtype)

    return side_path
