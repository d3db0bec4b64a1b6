"""Changes of the prompt: tokens are put in front of it, as in-context editors do."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from engram.editing.changes.change import Arrays, Change, Plain, array
from engram.errors import EditError, EditMismatch
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PromptChange(Shown, ABC):
    """Tokens that stand in front of a prompt, chosen by what the prompt is."""

    kind: ClassVar[str]

    @abstractmethod
    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens that are put in front of a prompt of these tokens."""

    @property
    def where(self) -> str:
        """It acts on the prompt, at no place in the model."""
        return ""

    @abstractmethod
    def parts(self) -> tuple[Arrays, Plain]:
        """See `Change.parts`."""

    @classmethod
    @abstractmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "PromptChange":
        """See `Change.of`."""

    @abstractmethod
    def require_fit(self, lm: "LM") -> None:
        """See `Change.require_fit`."""

    @classmethod
    @contextmanager
    def beside(cls, lm: "LM", rows: "Sequence[PromptChange | None]") -> Generator[None]:
        """See `Change.beside`."""

        def front(prompts: Sequence[list[int]]) -> list[list[int]]:
            if len(rows) not in (1, len(prompts)):
                raise EditError(f"The batch has {len(prompts)} row(s), but {len(rows)} edit(s) were given for rows.")
            changes = rows if len(rows) > 1 else [rows[0]] * len(prompts)
            return [[] if c is None else c(ids) for c, ids in zip(changes, prompts, strict=True)]

        with lm.passes.watched(front):
            yield

    def merged(self, later: Change) -> "Change | None":
        """Both stay: the tokens of the first stand first."""
        return None

    def scaled(self, factor: float) -> "PromptChange":
        """See `Change.scaled`.

        Raises:
            EditError: always.
        """
        raise EditError(f"A text has no size: a {self.kind} cannot be multiplied by {factor:g}. Leave the edit out.")

    def norm(self) -> float:
        """Nothing is added to weights."""
        return 0.0

    def text(self) -> str:
        """See `Change.text`."""
        return self.kind

    def refuse_weights(self, doing: str) -> None:
        """See `Change.refuse_weights`."""
        raise EditError(
            f"A {self.kind} is text in front of the prompt and no change of weights, which rules out {doing}. Keep the "
            f"edit itself (edit.save(folder)), or put the text in front of your prompts by hand."
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Preamble(PromptChange):
    """The same tokens in front of every prompt.

    Args:
        ids: the tokens.
    """

    kind: ClassVar[str] = "preamble"

    ids: Int[Tensor, " token"]

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """See `PromptChange`."""
        return self.ids.tolist()

    def parts(self) -> tuple[Arrays, Plain]:
        """See `Change.parts`."""
        return {"ids": self.ids}, {}

    @classmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "Preamble":
        """See `Change.of`."""
        return cls(ids=array(arrays, "ids", dims=1, whole=True))

    def require_fit(self, lm: "LM") -> None:
        """See `Change.require_fit`."""
        if len(self.ids) and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < lm.vocab_size:
            raise EditMismatch(f"The edit's text has tokens that {lm.name} does not have (it has {lm.vocab_size}).")

    def text(self) -> str:
        """See `Change.text`."""
        return f"{len(self.ids)} tokens in front"


def preamble(lm: "LM", text: str) -> Preamble:
    """Return a text as tokens in front of every prompt."""
    return Preamble(ids=torch.tensor(lm.encode(text).ids[0].tolist()))
