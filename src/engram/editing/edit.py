"""The Edit: a change of a model as a value. It can be looked at, added, scaled, saved, applied and taken back.

An Edit holds the change of each parameter (`updates`) and where it came from (`origins`): the facts, the method with
its settings, the losses of every step, the chosen token, the contexts. It belongs to one model, told by fingerprint.
"""

import hashlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from engram._version import __version__
from engram.editing import words
from engram.editing.updates import Update, combined
from engram.errors import EditError, EditMismatch
from engram.facts import Fact
from engram.given import require
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM

Mode = Literal["insert", "modify", "erase"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FactRecord(Shown):
    """What a method did for one fact.

    Args:
        fact: the fact, with the target that was written.
        mode: insert (nothing known before), modify (an original answer is replaced) or erase.
        layers: the layers that were changed.
        text: the prompt as the model saw it, chat template included.
        tokens: its tokens.
        position: index of the token whose key was used, where there is one.
        losses: the total loss at every step.
        stopped: why the optimisation ended.
        numbers: norms and probabilities worth knowing, by name.
    """

    fact: Fact
    mode: Mode = "modify"
    layers: tuple[int, ...] = ()
    text: str = ""
    tokens: tuple[str, ...] = ()
    position: int | None = None
    losses: tuple[float, ...] = ()
    stopped: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def token(self) -> str | None:
        """The token whose key was used."""
        return None if self.position is None else self.tokens[self.position]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Origin(Shown):
    """One run of a method: its settings and what it did for each fact.

    Args:
        method: the method's name, such as `"rome"`.
        settings: its settings as plain values.
        facts: one record per fact.
        contexts: templates with one `{}` before which the prompts were put.
        factor: by how much its change was scaled afterwards.
        notes: sentences for the user (defaults taken, ridges added, facts already known).
    """

    method: str
    settings: Mapping[str, Any]
    facts: tuple[FactRecord, ...]
    contexts: tuple[str, ...] = ()
    factor: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Edit(Shown):
    """A change of a model's parameters, and where it came from. The model itself is untouched until it is applied.

    Args:
        updates: the change by parameter name, as in `model.named_parameters()`.
        origins: the runs of methods that made it.
        model: the model's name, for people.
        fingerprint: the model's identity (`LM.fingerprint`).
        transposed: whether the model stores weights as [in, out] (GPT-2) rather than [out, in].
        version: the library's version that made it.
    """

    updates: Mapping[str, Update]
    origins: tuple[Origin, ...]
    model: str
    fingerprint: str
    transposed: bool
    version: str = __version__

    def _lines(self) -> Iterable[str]:
        return words.edit_lines(self)

    def _inside(self) -> Iterable[str]:
        return words.edit_html(self)

    @classmethod
    def of(cls, lm: "LM", updates: Mapping[str, Update], origins: tuple[Origin, ...]) -> "Edit":
        """Make an edit that belongs to a model."""
        return cls(
            updates=updates,
            origins=origins,
            model=lm.name,
            fingerprint=lm.fingerprint,
            transposed=lm.weight_is_transposed,
        )

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
    def digest(self) -> str:
        """Identity of the change itself: 16 hexadecimal digits from names and numbers."""
        digest = hashlib.sha256()
        for name, update in sorted(self.updates.items()):
            for part, tensor in update.tensors().items():
                digest.update(f"{name} {part} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def update(self, name: str) -> Update:
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
        """Return the Frobenius norm of the change, of one parameter or of all.

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
        updates = dict(self.updates)
        for name, update in other.updates.items():
            updates[name] = combined(updates[name], update) if name in updates else update
        whole = replace(self, updates=updates, origins=self.origins + other.origins)
        words.remark_on(other, [self])
        return whole

    def __mul__(self, factor: float | int) -> "Edit":
        require(factor, (float, int), "The factor")
        origins = tuple(replace(origin, factor=float(origin.factor * factor)) for origin in self.origins)
        return replace(
            self, updates={name: update.scaled(float(factor)) for name, update in self.updates.items()}, origins=origins
        )

    __rmul__ = __mul__

    # On a model

    @contextmanager
    def applied(self, lm: "LM") -> Generator["LM"]:
        """Let the model behave as edited inside the `with` block; its weights are never touched.

        The change is computed beside the weight, in fp32 whatever the model's dtype, so nested use, any order of
        leaving, exceptions and offloaded weights make no difference.

        Raises:
            EditMismatch: the edit was made for another model or other shapes.
        """
        from engram.editing.applying import beside

        with beside(lm, self):
            yield lm

    def apply_(self, lm: "LM") -> None:
        """Write the change into the model's weights; what is overwritten is kept with the model for `revert_`.

        Raises:
            EditMismatch: the edit was made for another model or other shapes, or the weights changed meanwhile.
            EditError: it is applied already, or a weight is offloaded.
            NumericalError: a weight would overflow its dtype (nothing is written).
        """
        from engram.editing.applying import apply_

        apply_(lm, self)

    def revert_(self, lm: "LM") -> None:
        """Take the change back, bit for bit, in any order among several applied edits.

        Raises:
            EditMismatch: somebody else changed the weights meanwhile (they are left as they are).
            EditError: this edit is not applied to this model.
        """
        from engram.editing.applying import revert_

        revert_(lm, self)

    # On disk

    def save(self, folder: str | Path) -> Path:
        """Write `edit.json` and `edit.safetensors` into a folder, atomically, and return the folder.

        Raises:
            EditError: the folder cannot be written; what was there before stays intact.
        """
        from engram.editing.files import save

        return save(self, Path(folder))

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
        from engram.editing.files import load

        edit = cls(**load(Path(folder)))
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
        from engram.editing.export import export

        return export(self, kind, Path(folder), lm)

    def require_fit(self, lm: "LM") -> None:
        """Check that the edit belongs to a model.

        Raises:
            EditMismatch: another fingerprint, a parameter that is not there, or another shape.
        """
        from engram.editing.applying import require_fit

        require_fit(lm, self)
