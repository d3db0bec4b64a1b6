"""Checks as text: aligned columns, prompts that keep their subject, the worst few of many."""

from collections.abc import Mapping, Sequence

from engram.editing.answers import percent, said
from engram.editing.comparisons import Comparison, FactCheck, FreeText, worst_first
from engram.editing.making import Kind

NAMES: Mapping[Kind, tuple[str, str]] = {
    "prompt": ("the prompt", "done"),
    "paraphrase": ("paraphrases", "follow"),
    "context": ("behind other text", "follow"),
    "neighbor": ("neighbors", "stay"),
    "other fact": ("other facts of the subject", "unchanged"),
    "unrelated fact": ("unrelated facts", "unchanged"),
}
"""For each kind of prompt its name, and what it should do."""

_YES, _NO, _CUT = "✓", "✗", "…"
_LEAK = 0.01
_FEW, _SHOWN = 6, 3


def fact_text(fact: FactCheck, *, width: int, every: bool) -> str:
    """Draw what was asked about one fact.

    Args:
        fact: what was asked.
        width: characters per line.
        every: show all prompts instead of the worst few of each kind.
    """
    wanted = "what it would say without knowing the subject" if fact.mode == "erase" else fact.fact.target
    groups = {kind: chosen([c for c in fact.answers if c.kind == kind], every=every) for kind in NAMES}
    lines_of = iter(drawn([c for group in groups.values() for c in group], width=width))
    lines = [f"{fact.fact.text} -> {wanted}"]
    for kind, (name, does) in NAMES.items():
        whole = [c for c in fact.answers if c.kind == kind]
        if whole and kind != "prompt":
            left = len(whole) - len(groups[kind])
            shown = "; the worst:" if left and groups[kind] else ""
            lines.append(f"  {name}: {sum(c.ok for c in whole)} of {len(whole)} {does}{shown}")
        lines.extend(next(lines_of) for _ in groups[kind])
    for text in fact.texts:
        lines.extend(_free_text(text, width))
    return "\n".join(lines)


def chosen(group: Sequence[Comparison], *, every: bool = False) -> list[Comparison]:
    """Return all of a few; of many the worst of those that are not as wished.

    Args:
        group: prompts of one kind.
        every: return all of them in any case.
    """
    if every or len(group) <= _FEW:
        return list(group)
    return [c for c in worst_first(group) if not c.ok][:_SHOWN]


def drawn(comparisons: Sequence[Comparison], *, width: int = 110) -> list[str]:
    """Draw comparisons as lines with aligned columns: mark, prompt, answer before -> answer after.

    Args:
        comparisons: what to draw.
        width: characters per line; longer prompts are cut where that leaves their subject.
    """
    side = max((len(said(c.before)) for c in comparisons), default=0)
    tail = max((len(said(c.after) + _shift(c)) for c in comparisons), default=0)
    longest = max((len(_plain(c)) for c in comparisons), default=0)
    room = max(24, min(longest, width - side - tail - 12))
    lines: list[str] = []
    for c in comparisons:
        mark = _YES if c.ok else _NO
        text = shortened(_plain(c), c.subject, room)
        lines.append(f"    {mark} {text:{room}}  {said(c.before):{side}} -> {said(c.after)}{_shift(c)}")
    return lines


def _plain(comparison: Comparison) -> str:
    return " ".join((comparison.shown or comparison.text).split())


def shortened(text: str, subject: str, room: int) -> str:
    """Cut a text to so many characters; its subject stays where it fits.

    >>> shortened("The Statue of Liberty is located in the city of", "Statue of Liberty", 32)
    'The Statue of Liberty…he city of'
    """
    if len(text) <= room:
        return text
    begin = text.rfind(subject) if subject else -1
    if begin < 0 or len(subject) > room - 2:
        half = (room - 1) // 2
        return text[: room - 1 - half] + _CUT + text[len(text) - half :]
    end = begin + len(subject)
    if end + 1 <= room:  # the subject stands near the beginning: what follows it is cut
        left = room - end - 1
        return text[:end] + _CUT + (text[-left:] if left else "")
    if len(text) - begin + 1 <= room:  # near the end: what stands before it is cut
        return _CUT + text[len(text) - room + 1 :]
    left = room - 2 - len(subject)
    return _CUT + text[begin : end + left] + _CUT


def _shift(comparison: Comparison) -> str:
    """Return the target's probability where the answers alone do not tell it: it is not given, or it leaks."""
    before, after = comparison.before.target, comparison.after.target
    if comparison.target is None or before is None or after is None or comparison.after.gives(comparison.target):
        return ""
    wanted = comparison.kind in ("prompt", "paraphrase")
    leaks = comparison.kind == "neighbor" and after > before + _LEAK
    return f"  ({comparison.target} {percent(before)} -> {percent(after)})" if wanted or leaks else ""


def _free_text(text: FreeText, width: int) -> list[str]:
    lines = [f"  free text: {shortened(' '.join(text.prompt.split()), '', max(24, width - 13))}"]
    for label, whole in (("before", text.before), ("after", text.after)):
        words = " ".join(whole[len(text.prompt) :].split())
        room = max(20, width - 12)
        cut = words if len(words) <= room else words[: room - 1].rstrip() + _CUT
        lines.append(f"    {label:7}{cut or '(nothing)'}")
    return lines
