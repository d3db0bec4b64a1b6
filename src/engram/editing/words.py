"""What edits say of themselves, and of each other: lines for people, and a remark where two contradict."""

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engram.showing import html_notes, html_table, short

if TYPE_CHECKING:
    from engram.editing.edit import Edit
    from engram.editing.records import FactRecord, Origin

logger = logging.getLogger(__name__)

_LISTED, _PROMPT = 5, 80


def edit_lines(edit: "Edit") -> Iterator[str]:
    """Yield an edit's size, its first facts, and its remarks."""
    size = f"{len(edit.facts)} fact(s), {len(edit.changes)} {_places(edit)}"
    yield f"Edit({size} of {edit.model!r}, norm {edit.norm():.4g})"
    yield from (f"  {_wish(record)}" for record in edit.records[:_LISTED])
    if len(edit.records) > _LISTED:
        yield f"  and {len(edit.records) - _LISTED} more: print(edit.describe())"


def edit_html(edit: "Edit") -> Iterator[str]:
    """Yield a table of what was written, and the remarks."""
    rows = [
        [record.fact.text, _target(record), record.fact.original or "", origin.method]
        for origin in edit.origins
        for record in origin.facts
    ]
    yield html_table(["prompt", "written", "instead of", "by"], rows, left=4)
    yield html_notes(edit.notes)


def described(edit: "Edit") -> str:
    """See `Edit.describe`."""
    lines = [f"Edit of {edit.model} ({edit.fingerprint}), {len(edit.facts)} fact(s), norm {edit.norm():.4g}"]
    for origin in edit.origins:
        preset = origin.settings.get("preset")
        times = "" if origin.factor == 1 else f", times {origin.factor:g}"
        lines.append(f"  {origin.method}{f' ({preset})' if preset else ''}{times}")
        lines.extend(f"    {_sentence(record)}" for record in origin.facts)
    lines.extend(f"  note: {note}" for note in edit.notes)
    lines.extend(f"  {change.where or 'the prompt'}: {change.text()}" for change in edit.changes)
    return "\n".join(lines)


def contradictions(origins: "Iterable[Origin]") -> tuple[str, ...]:
    """Return a remark for every prompt into which runs of methods wrote more than one answer.

    A run that was taken away (a factor of 0 or less) wrote nothing.
    """
    written: dict[tuple[str, str], dict[str, None]] = {}
    for record in (record for origin in origins if origin.factor > 0 for record in origin.facts):
        written.setdefault((record.fact.subject, record.fact.text), {})[_target(record)] = None
    return tuple(
        f"Edits contradict each other: after {text!r} they write {' and '.join(answers)}, and act together. "
        f"Take one of them away."
        for (_, text), answers in written.items()
        if len(answers) > 1
    )


def remark_on(edit: "Edit", others: "Iterable[Edit]", said: set[str] | None = None) -> None:
    """Warn where an edit writes another answer than others that act together with it.

    Args:
        edit: the one that comes in addition.
        others: those that are there.
        said: remarks that were made before, and are not made again; new ones go in.
    """
    there = [origin for other in others for origin in other.origins]
    known = {*contradictions(there), *(said or ())}
    for remark in contradictions([*there, *edit.origins]):
        if remark not in known:
            logger.warning(remark)
            if said is not None:
                said.add(remark)


def _places(edit: "Edit") -> str:
    return "change(s)" if edit.gates else "parameter(s)"


def _target(record: "FactRecord") -> str:
    if record.mode == "erase":
        return "what it would say without knowing the subject"
    return short(record.fact.target)


def _wish(record: "FactRecord") -> str:
    was = f" (was {short(record.fact.original)})" if record.fact.original else ""
    return f"{short(record.fact.text, _PROMPT)} -> {_target(record)}{was}"


def _sentence(record: "FactRecord") -> str:
    where = f"; layer {', '.join(map(str, record.layers))}" if record.layers else ""
    token = f", token {record.token!r} ({record.position})" if record.position is not None else ""
    steps = (
        f"; loss {record.losses[0]:.3f} -> {record.losses[-1]:.3f} in {len(record.losses)} steps"
        if record.losses
        else ""
    )
    return f"{_wish(record)}{where}{token}{steps}"
