"""The edits of one visit: each can be switched on and off; those that are on act together. A plain value."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from engram.editing import Edit
from engram.editing.verdict import Verdict
from engram.editing.words import contradictions
from engram.errors import EditError
from engram.web.limits import MIB, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One edit in the ledger.

    Args:
        number: its name in this visit, from 1; never given twice.
        edit: the edit.
        on: whether it acts.
        source: how it came here: "made here", "uploaded", "combined from 1, 2".
        verdict: what it is worth, where that was asked.
    """

    number: int
    edit: Edit
    on: bool
    source: str
    verdict: Verdict | None = None

    @property
    def label(self) -> str:
        """A line that tells this edit from others."""
        lines = [f"{_short(fact.text)} → {fact.target or '(erased)'}" for fact in self.edit.facts]
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        return f"{self.number}: {next(iter(lines), '(no fact)')}{more}"

    @property
    def how(self) -> str:
        """Methods and layers."""
        parts = dict.fromkeys(
            f"{origin.method}{_preset(origin.settings.get('preset'))}, "
            f"layer {', '.join(map(str, sorted({layer for record in origin.facts for layer in record.layers})))}"
            for origin in self.edit.origins
        )
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A visitor's edits.

    Args:
        entries: in the order in which they came.
        made: how many numbers were given out.
    """

    entries: tuple[Entry, ...] = ()
    made: int = 0

    @property
    def active(self) -> tuple[Entry, ...]:
        """Those that are switched on."""
        return tuple(entry for entry in self.entries if entry.on)

    def added(self, edit: Edit, *, source: str, limits: Limits, verdict: Verdict | None = None) -> "Ledger":
        """Return the ledger with one more edit, switched on.

        Raises:
            EditError: there are too many, or they take too much memory.
        """
        self.require_room(limits)
        if sum(size_of(entry.edit) for entry in self.entries) + size_of(edit) > limits.ledger_bytes:
            raise EditError(f"Edits of this visit may take up to {limits.ledger_bytes // MIB} MiB. Remove some first.")
        entry = Entry(number=self.made + 1, edit=edit, on=True, source=source, verdict=verdict)
        return Ledger(entries=(*self.entries, entry), made=self.made + 1)

    def require_room(self, limits: Limits) -> None:
        """Check that another edit may come.

        Raises:
            EditError: there are too many.
        """
        if len(self.entries) >= limits.edits:
            raise EditError(f"There are {len(self.entries)} edits, the most that one visit keeps. Remove some first.")

    def switched(self, on: Collection[int]) -> "Ledger":
        """Return the ledger with exactly these numbers switched on."""
        return replace(self, entries=tuple(replace(entry, on=entry.number in on) for entry in self.entries))

    def without_off(self) -> "Ledger":
        """Return the ledger without the edits that are switched off."""
        return replace(self, entries=self.active)

    def total(self) -> Edit | None:
        """Return the sum of the edits that are switched on."""
        total: Edit | None = None
        for entry in self.active:
            total = entry.edit if total is None else total + entry.edit
        return total

    def contradictions(self) -> tuple[str, ...]:
        """Return a remark for every prompt into which edits that are on write different answers."""
        return contradictions(origin for entry in self.active for origin in entry.edit.origins)

    def combined(self, limits: Limits) -> "Ledger":
        """Return the ledger with the sum of the switched-on edits as one new edit; they themselves are switched off.

        Raises:
            EditError: fewer than two are on, or there is no room.
        """
        total = self.total()
        if total is None or len(self.active) < 2:
            raise EditError("Switch on at least two edits to combine them into one.")
        source = f"combined from {', '.join(str(entry.number) for entry in self.active)}"
        return self.switched(()).added(total, source=source, limits=limits)


def size_of(edit: Edit) -> int:
    """Return the bytes of an edit's numbers."""
    return sum(t.numel() * t.element_size() for change in edit.changes for t in change.parts()[0].values())


def _preset(name: object) -> str:
    return f" ({name})" if name else ""


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
