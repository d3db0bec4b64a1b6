"""What every kind of change can do, and how its arrays are checked when they come from a file.

A change is what an edit does at one place. An `Edit` holds changes in order; a kind is a frozen class with a name in
`engram.editing.changes.KINDS`, and everything else (edit folders, digests, rows, sums, `apply_`) asks only this.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from engram.errors import EditError

if TYPE_CHECKING:
    from engram.models import LM

Arrays = Mapping[str, Tensor]
Plain = Mapping[str, Any]


@runtime_checkable
class Change(Protocol):
    """What an edit does at one place of a model; a frozen value."""

    kind: ClassVar[str]
    """Its name in `edit.json` and in `KINDS`."""

    @property
    def where(self) -> str:
        """The place: a parameter's name, a site, or nothing where it acts on the prompt."""
        ...

    def parts(self) -> tuple[Arrays, Plain]:
        """Return all that it is made of, beside its kind and place: arrays, and plain values that JSON can hold."""
        ...

    @classmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "Change":
        """Make one from its parts.

        Raises:
            EditError: an array is missing, has another shape or type than it can have, or is not finite.
        """
        ...

    def require_fit(self, lm: "LM") -> None:
        """Check that a model has its place.

        Raises:
            EditMismatch: the place is not there, or is of another size.
            EditError: such a place cannot be changed.
        """
        ...

    @classmethod
    def beside(cls, lm: "LM", rows: Sequence[Any]) -> AbstractContextManager[None]:
        """Let row i of every batch behave as under `rows[i]`; a single entry holds for all rows of any batch.

        Args:
            lm: the model; its weights are never touched.
            rows: changes of this kind at one place.
        """
        ...

    def merged(self, later: "Change") -> "Change | None":
        """Return one change that does what this and then a later one at the same place do; None keeps both, in order.

        Raises:
            EditError: the two do not fit together.
        """
        ...

    def scaled(self, factor: float) -> "Change":
        """Return `factor` times this change.

        Raises:
            EditError: that has no meaning for this kind.
        """
        ...

    def norm(self) -> float:
        """Return the Frobenius norm of what it adds to weights; 0 where it adds nothing to them."""
        ...

    def text(self) -> str:
        """Return what it is in a few words, for people."""
        ...

    def refuse_weights(self, doing: str) -> None:
        """Check that it is a change of weights, as writing a model or an adapter needs.

        Raises:
            EditError: it is none; `doing` says what needed it, and the message what to do instead.
        """
        ...


def identity(changes: "Sequence[Change]") -> str:
    """Return 16 hexadecimal digits from the kinds, places, plain values and raw bytes of changes."""
    digest = hashlib.sha256()
    for change in changes:
        arrays, plain = change.parts()
        digest.update(f"{change.kind} {change.where} {json.dumps(dict(plain), sort_keys=True)}".encode())
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def stacked(changes: "Sequence[Change]") -> "tuple[Change, ...]":
    """Return changes that act as these do one after another, those of one place joined where their kinds can be.

    Raises:
        EditError: two of them do not fit together.
    """
    whole: list[Change] = []
    for change in changes:
        same = [i for i, earlier in enumerate(whole) if earlier.where == change.where]
        joined = whole[same[-1]].merged(change) if same else None
        if joined is None:
            whole.append(change)
        else:
            whole[same[-1]] = joined
    return tuple(whole)


def array(arrays: Arrays, name: str, *, dims: int | None = None, whole: bool = False) -> Tensor:
    """Take one array out of those of a file.

    Args:
        arrays: by name.
        name: which.
        dims: how many dimensions it must have.
        whole: whether it holds whole numbers, such as token ids, rather than fractions.

    Raises:
        EditError: it is missing, has another type or number of dimensions, or is not finite.
    """
    if name not in arrays:
        raise EditError(f"{name!r} is missing.")
    found = arrays[name]
    fits = found.dtype == torch.int64 if whole else found.is_floating_point()
    if not fits or (dims is not None and found.ndim != dims):
        raise EditError(f"{name!r} has dtype {found.dtype} and {found.ndim} dimensions, which it cannot have.")
    if not torch.isfinite(found).all():
        raise EditError(f"{name!r} contains NaN or infinity.")
    return found
