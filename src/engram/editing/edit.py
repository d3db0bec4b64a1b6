"""The Edit: a change of a model as a value. It can be looked at, added, scaled, saved, applied and taken back.

An Edit holds changes in the order in which they act (`changes`) and where it came from (`origins`): the facts, the
method with its settings, the losses of every step, the chosen token, the contexts. It belongs to one model, told by
fingerprint.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from engram._version import __version__
from engram.editing import applying, export, files, words
from engram.editing.changes import Change, WeightChange
from engram.editing.changes.change import identity, stacked
from engram.editing.records import FactRecord, Origin
from engram.errors import EditError, EditMismatch
from engram.facts import Fact
from engram.given import require
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Edit(Shown):
    """A change of a model, and where it came from. The model itself is untouched until it is applied.

    An Edit is true where there is anything to do, and false where it changes nothing.

    Args:
        changes: what it does, in order; those of weights act before all others. One place has one change of its kind.
        origins: the runs of methods that made it.
        model: the model's name, for people.
        fingerprint: the model's identity (`LM.fingerprint`).
        version: the library's version that made it.
    """

    changes: tuple[Change, ...]
    origins: tuple[Origin, ...]
    model: str
    fingerprint: str
    version: str = __version__

    def __bool__(self) -> bool:
        return bool(self.changes)

    def _lines(self) -> Iterable[str]:
        return words.edit_lines(self)

    def _inside(self) -> Iterable[str]:
        return words.edit_html(self)

    @classmethod
    def of(
        cls, lm: "LM", changes: Mapping[str, WeightChange] | Sequence[Change], origins: tuple[Origin, ...] = ()
    ) -> "Edit":
        """Make an edit that belongs to a model.

        Args:
            lm: the model.
            changes: in order; or changes of weights by parameter name, as in `model.named_parameters()`.
            origins: the runs of methods that made it.

        Raises:
            EditError: two changes of one place do not fit together.
        """
        named = [(c.where, c) for c in changes] if isinstance(changes, Sequence) else list(changes.items())
        placed = [c.placed(lm, name) if isinstance(c, WeightChange) else c for name, c in named]
        return cls(changes=stacked(placed), origins=origins, model=lm.name, fingerprint=lm.fingerprint)

    # What it is

    @property
    def records(self) -> tuple[FactRecord, ...]:
        """What was done for each fact."""
        return tuple(record for origin in self.origins for record in origin.facts)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts that were written."""
        return tuple(record.fact for record in self.records)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user from all runs, and one for every prompt into which they write different answers."""
        said = (note for origin in self.origins for note in origin.notes)
        return tuple(dict.fromkeys([*said, *words.contradictions(self.origins)]))

    @property
    def chat(self) -> bool:
        """Whether it was made within the model's chat template, and is to be asked there."""
        return any(origin.settings.get("chat") is True for origin in self.origins)

    @cached_property
    def updates(self) -> Mapping[str, WeightChange]:
        """The changes of weights by parameter name."""
        return MappingProxyType({c.parameter: c for c in self.changes if isinstance(c, WeightChange)})

    @cached_property
    def digest(self) -> str:
        """Identity of the change itself: 16 hexadecimal digits from places, plain values and bytes."""
        return identity(sorted(self.updates.values(), key=lambda c: c.where) + [*self.gates])

    @property
    def gates(self) -> tuple[Change, ...]:
        """The changes that are none of weights, in order."""
        return tuple(c for c in self.changes if not isinstance(c, WeightChange))

    def update(self, name: str) -> WeightChange:
        """Return the change of one parameter.

        Raises:
            EditError: the edit does not change it.
        """
        if name not in self.updates:
            known = ", ".join(self.updates) or "no parameter at all"
            raise EditError(f"This edit does not change {name!r}; it changes {known}.")
        return self.updates[name]

    def delta(self, name: str) -> Float[Tensor, "..."]:
        """Return the change of one parameter as a dense tensor, in the parameter's own orientation.

        Raises:
            EditError: the edit does not change it.
        """
        return self.update(name).dense()

    def norm(self, name: str | None = None) -> float:
        """Return the Frobenius norm of what is added to one parameter, or to all.

        Raises:
            EditError: the edit does not change that parameter.
        """
        if name is not None:
            return self.update(name).norm()
        return sum(update.norm() ** 2 for update in self.updates.values()) ** 0.5

    def describe(self) -> str:
        """Return a few lines for people: what was changed, how, and by how much."""
        return words.described(self)

    # Arithmetic

    def __add__(self, other: "Edit") -> "Edit":
        require(other, Edit, "What is added")
        if other.fingerprint != self.fingerprint:
            raise EditMismatch(
                f"Edits of two models cannot be added: {self.model} ({self.fingerprint}) and "
                f"{other.model} ({other.fingerprint})."
            )
        whole = replace(self, changes=stacked((*self.changes, *other.changes)), origins=self.origins + other.origins)
        words.remark_on(other, [self])
        return whole

    def __mul__(self, factor: float | int) -> "Edit":
        require(factor, (float, int), "The factor")
        origins = tuple(replace(origin, factor=float(origin.factor * factor)) for origin in self.origins)
        return replace(self, changes=tuple(change.scaled(float(factor)) for change in self.changes), origins=origins)

    __rmul__ = __mul__

    # On a model

    @contextmanager
    def applied(self, lm: "LM") -> Generator["LM"]:
        """Let the model behave as edited inside the `with` block; its weights are never touched.

        Changes of weights are computed beside them, in fp32 whatever the model's dtype, so nested use, any order of
        leaving, exceptions and offloaded weights make no difference.

        Raises:
            EditMismatch: the edit was made for another model or other shapes.
        """
        with applying.beside(lm, self):
            yield lm

    def apply_(self, lm: "LM") -> None:
        """Write the change into the model's weights; what is overwritten is kept with the model for `revert_`.

        Raises:
            EditMismatch: the edit was made for another model or other shapes, or the weights changed meanwhile.
            EditError: it is applied already, or a weight is offloaded.
            NumericalError: a weight would overflow its dtype (nothing is written).
        """
        applying.apply_(lm, self)

    def revert_(self, lm: "LM") -> None:
        """Take the change back, bit for bit, in any order among several applied edits.

        Raises:
            EditMismatch: somebody else changed the weights meanwhile (they are left as they are).
            EditError: this edit is not applied to this model.
        """
        applying.revert_(lm, self)

    # On disk

    def save(self, folder: str | Path) -> Path:
        """Write `edit.json` and `edit.safetensors` into a folder, atomically, and return the folder.

        Raises:
            EditError: the folder cannot be written; what was there before stays intact.
        """
        return files.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, lm: "LM | None" = None) -> "Edit":
        """Read an edit back; nothing is executed (JSON and safetensors only).

        Args:
            folder: what `save` wrote.
            lm: check at once that the edit belongs to this model.

        Raises:
            EditError: missing, truncated, tampered with, or written by a newer version.
            EditMismatch: it belongs to another model than `lm`.
        """
        edit = cls(**files.load(Path(folder)))
        if lm is not None:
            edit.require_fit(lm)
        return edit

    def export(self, kind: str, folder: str | Path, lm: "LM | None" = None) -> Path:
        """Write the edit for other libraries, and return the folder.

        Args:
            kind: `"peft"`, a LoRA adapter that `PeftModel.from_pretrained` loads without Engram, or `"hf"`, the whole
                edited model as `save_pretrained` writes it.
            folder: where to; must be new or empty.
            lm: the model; needed for `"hf"`.

        Raises:
            SettingError: an unknown kind.
            EditError: the folder is in use or cannot be written, or the model is needed and not given.
            EditMismatch: the edit was made for another model.
        """
        return export.export(self, kind, Path(folder), lm)

    def require_fit(self, lm: "LM") -> None:
        """Check that the edit belongs to a model.

        Raises:
            EditMismatch: another fingerprint, a parameter that is not there, or another shape.
        """
        applying.require_fit(lm, self)
