"""Changes of what a module gives out: a pure function at one place, given what is known of the pass under way.

A kind of this family writes `__call__` and says what it is made of. Everything else is inherited: acting beside the
model, one change per row, saving, stacking, `apply_` and `revert_`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.changes.change import Arrays, Change, Plain
from engram.editing.changes.rows import grouped, require_rows
from engram.errors import EditError, EditMismatch
from engram.models.hooks import on_output
from engram.models.linear import features
from engram.models.passes import Pass
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SiteChange(Shown, ABC):
    """A function of what enters and leaves a module, which decides row by row.

    Args:
        module: path of the module in the model, such as "transformer.h.5.mlp.c_proj".
    """

    kind: ClassVar[str]

    module: str

    @abstractmethod
    def __call__(
        self, inputs: Float[Tensor, "row pos in"], outputs: Float[Tensor, "row pos out"], now: Pass
    ) -> Float[Tensor, "row pos out"]:
        """Return what the module gives out under this change; nothing that it is given is changed in place."""

    @abstractmethod
    def parts(self) -> tuple[Arrays, Plain]:
        """See `Change.parts`."""

    @classmethod
    @abstractmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "SiteChange":
        """See `Change.of`."""

    @property
    def where(self) -> str:
        """The module's path."""
        return self.module

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """How many numbers must enter and leave the module, where that is known."""
        return None, None

    def require_fit(self, lm: "LM") -> None:
        """See `Change.require_fit`."""
        try:
            found = features(lm.model.get_submodule(self.module))
        except AttributeError as error:
            raise EditMismatch(
                f"The edit acts at {self.module!r}, which {lm.name} does not have. Was it made for this model?"
            ) from error
        for wanted, size in zip(self.sizes, found or (None, None), strict=True):
            if None not in (wanted, size) and wanted != size:
                raise EditMismatch(f"The edit acts at {self.module!r} on {self.sizes} numbers; {lm.name} has {found}.")

    def to(self, device: torch.device) -> "SiteChange":
        """Return the same change on another device."""
        arrays, plain = self.parts()
        return type(self).of(self.where, {name: array.to(device) for name, array in arrays.items()}, plain)

    @classmethod
    @contextmanager
    def beside(cls, lm: "LM", rows: "Sequence[SiteChange | None]") -> Generator[None]:
        """See `Change.beside`."""
        module = next(change.module for change in rows if change is not None)
        with lm.passes.watched(), on_output(lm, module, _together(lm, rows)):
            yield

    def merged(self, later: Change) -> "Change | None":
        """Both stay and act in order, unless a kind can do better."""
        return None

    def scaled(self, factor: float) -> "SiteChange":
        """See `Change.scaled`.

        Raises:
            EditError: always, unless a kind can be scaled.
        """
        raise EditError(
            f"A {self.kind} chooses what to say and has no size: it cannot be multiplied by {factor:g}. Leave the edit "
            f"out, or make it anew."
        )

    def norm(self) -> float:
        """Nothing is added to weights."""
        return 0.0

    def text(self) -> str:
        """See `Change.text`."""
        return self.kind

    def refuse_weights(self, doing: str) -> None:
        """See `Change.refuse_weights`."""
        raise EditError(
            f"A {self.kind} (at {self.module!r}) is no change of weights, which rules out {doing}. Keep the edit "
            f"itself (edit.save(folder)) and use it with `edit.applied(lm)` or `edit.apply_(lm)`."
        )


def _together(lm: "LM", rows: "Sequence[SiteChange | None]") -> Callable[[Tensor, Tensor], Tensor]:
    """Return what the changes of rows make of a module's input and output."""
    groups = [(rows[0], None)] if len(rows) == 1 and rows[0] is not None else grouped(rows)
    moved: dict[tuple[int, torch.device], SiteChange] = {}

    def act(inputs: Tensor, outputs: Tensor) -> Tensor:
        if groups and groups[0][1] is not None:
            require_rows(outputs, len(rows))
        inputs, now = inputs.to(outputs.device), lm.passes.now(outputs)
        for i, (change, of) in enumerate(groups):
            if (i, outputs.device) not in moved:
                moved[i, outputs.device] = change.to(outputs.device)
            here = moved[i, outputs.device]
            if of is None:
                return here(inputs, outputs, now.seen_by(change)).to(outputs.dtype)
            new = here(inputs[of], outputs[of], now.seen_by(change, of)).to(outputs.dtype)
            outputs = outputs.index_copy(0, torch.tensor(of, device=outputs.device), new)
        return outputs

    return act
