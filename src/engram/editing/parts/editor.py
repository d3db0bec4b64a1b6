"""What methods have in common, so that a new one writes `find` and no more.

A method is a frozen, keyword-only dataclass of its settings whose call makes an Edit. All state between edits is in the
Edit: one that goes `onto` another sees the model with it, and the older Edit, which stays as it was, is the undo.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

from engram.editing.edit import Edit
from engram.editing.parts.published import Choice
from engram.editing.records import Mode
from engram.errors import SettingError, did_you_mean
from engram.facts import Fact
from engram.progress import Progress
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM

_Kind = TypeVar("_Kind", bound="Editor")


@dataclass(frozen=True, kw_only=True, repr=False)
class Editor(Shown):
    """A method with defaults for all that it need not know.

    Args:
        mode: insert, modify or erase; by whether a fact names its original when not given.
        chat: wrap prompts with the tokenizer's chat template.

    Attributes:
        name: what it is called, in `METHODS` and in an Edit's origins.
        changes: what it changes in a model, in a few words.
        at_once: how facts of one call come together, in a few words.
        trained: whether it needs training before its first edit.
        exports: what its edits can be written as (`Edit.export`), besides Engram's own folders.
    """

    name: ClassVar[str] = ""
    changes: ClassVar[str] = ""
    at_once: ClassVar[str] = ""
    trained: ClassVar[bool] = False
    exports: ClassVar[tuple[str, ...]] = ()

    mode: Mode | None = None
    chat: bool = False

    def find(self, lm: "LM", facts: Sequence[Fact], progress: Progress | None) -> Edit:
        """Make an Edit of all facts for the model as it answers now: what a method writes.

        Args:
            lm: the model, perhaps under an edit.
            facts: what shall be true afterwards.
            progress: told what is being done, how much of it is done, and how much there is.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how edits are found.")

    def __call__(
        self, lm: "LM", facts: Sequence[Fact], *, onto: Edit | None = None, progress: Progress | None = None
    ) -> Edit:
        """Make one Edit of all facts; see `engram.edit` for the errors.

        Args:
            lm: the model.
            facts: what shall be true afterwards.
            onto: an Edit to go on from; it is in what is returned, and stays as it was.
            progress: told what is being done, how much of it is done, and how much there is.
        """
        if onto is None:
            return self.find(lm, facts, progress)
        with onto.applied(lm):
            new = self.find(lm, facts, progress)
        return onto + new

    def each(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> list[Edit]:
        """Make one Edit per fact, as if each were alone."""
        return [self(lm, [fact], progress=progress) for fact in facts]

    def choice(self, lm: "LM") -> Choice:
        """Return the layers and numbers that are used on a model, and where they come from.

        Raises:
            SettingError: a layer is out of range.
        """
        return Choice(numbers={}, notes=())

    def settled(self: _Kind, lm: "LM") -> tuple[_Kind, tuple[str, ...]]:
        """Return the method with the numbers that it uses on a model, and sentences about where they come from.

        Raises:
            SettingError: a layer is out of range.
        """
        choice = self.choice(lm)
        return replace(self, **choice.numbers), choice.notes

    def prepared(self, lm: "LM", *, layers: Sequence[int] | None = None, progress: Progress | None = None) -> "Editor":
        """Return the method with all that no fact changes already found.

        Args:
            lm: the model.
            layers: layers that it may come to edit; those that it edits as it is when not given.
            progress: told what is being done.
        """
        return self

    def counted(
        self,
        lm: "LM",
        *,
        layers: Sequence[int] | None = None,
        tokens: int | None = None,
        progress: Progress | None = None,
    ) -> "Editor":
        """Return the method with its key statistics, where it needs any.

        Args:
            lm: the model.
            layers: as for `prepared`.
            tokens: how many tokens to count where the method does not say.
            progress: told about tokens counted.

        Raises:
            SettingError: there is no text to count, and nothing in the cache.
        """
        return self

    def _require_positive(self, *names: str) -> None:
        """Check numbers that were given.

        Raises:
            SettingError: one is not positive.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingError(f"{name}={value}; it must be positive.")

    def _require_one_of(self, name: str, allowed: Sequence[str]) -> None:
        """Check a word that was given.

        Raises:
            SettingError: it is none of those that are allowed.
        """
        value: str = getattr(self, name)
        if value not in allowed:
            raise SettingError(f"There is no {name} {value!r}. {did_you_mean(value, allowed)}")

    def _refuse_erasing(self, who: str) -> None:
        """Check that a method that needs a target is not asked to erase.

        Raises:
            SettingError: it is.
        """
        if self.mode == "erase":
            raise SettingError(f"{who} needs a target and cannot erase; use ROME(mode='erase').")
