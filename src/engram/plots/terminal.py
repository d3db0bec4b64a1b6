"""A heat map as coloured text, readable without colour too."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float
from rich.text import Text

from engram.showing import cut

_WORD, _LABEL = 8, 18
_TERMINAL = 80
"""Columns of the narrowest terminal that is usual, and of a file: longer lines of words would be broken there."""
_SHADES = " ·░▒▓█"
_COLORS = {"state": (128, 90, 213), "mlp": (56, 161, 105), "attn": (229, 62, 62)}


def heat_text(
    values: Float[np.ndarray, "token layer"],
    *,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    marked: Collection[int] = (),
    title: str = "",
    kind: str = "state",
    low: float = 0.0,
    across: str = "layer",
) -> Text:
    """Return a heat map as text: a row per token, a column per layer, darker for larger values.

    Args:
        values: what to draw.
        rows: one label per row.
        columns: one label per column, of which every fifth is shown; numbers from 0 when not given.
        marked: rows that are drawn bold, with a star: the subject.
        title: the first line.
        kind: the site, which decides the colour.
        low: value of a blank cell.
        across: what the columns are.
    """
    high = max(float(values.max()), low) if values.size else low
    wide = 2 if values.shape[1] <= 30 else 1
    labels = [f"{row}*" if i in marked else row for i, row in enumerate(rows)]
    margin = max((len(label) for label in labels), default=0)
    text = Text(f"{title}\n" if title else "", style="bold", no_wrap=True)
    for i, label in enumerate(labels):
        text.append(label.rjust(margin), style="bold" if i in marked else "")
        text.append(" │", style="dim")
        for value in values[i]:
            share = (float(value) - low) / (high - low) if high > low else 0.0
            text.append(_shade(share) * wide, style=_style(kind, share))
        text.append("│\n", style="dim")
    ticks = "".join(name[: wide * 5].ljust(wide * 5) for name in _names(columns, values.shape[1])[::5])
    text.append(f"{' ' * margin}  {ticks[: values.shape[1] * wide].rstrip()}  {across}\n", style="dim")
    text.append(f"{' ' * margin}  {low:.3g} {_SHADES[1:]} {high:.3g}", style="dim")
    return text


def word_text(
    values: Float[np.ndarray, "token layer"],
    words: Sequence[Sequence[str]],
    *,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    marked: Collection[int] = (),
    title: str = "",
    kind: str = "state",
    low: float = 0.0,
) -> Text:
    """Return words as a table, brighter for larger values; of many columns evenly spaced ones, the last always.

    Args:
        values: decides the colours.
        words: a word for every cell.
        rows: one label per row.
        columns: one label per column; numbers from 0 when not given.
        marked: rows that are drawn bold, with a star: the subject.
        title: the first line.
        kind: the site, which decides the colour.
        low: value of the palest colour.
    """
    high, many = max(float(values.max()), low) if values.size else low, values.shape[1]
    labels = [cut(f"{row}*" if i in marked else row, _LABEL) for i, row in enumerate(rows)]
    margin = max((len(label) for label in labels), default=0)
    room = max(2, (_TERMINAL - margin - 2) // (_WORD + 1))
    shown = sorted({*(many - 1 - round(i * (many - 1) / (room - 1)) for i in range(min(room, many))), many - 1})
    shown = list(range(many)) if many <= room else shown
    names = _names(columns, many)
    text = Text(f"{title}\n" if title else "", style="bold", no_wrap=True)
    text.append(f"{' ' * margin}  {' '.join(cut(names[i], _WORD).ljust(_WORD) for i in shown)}\n", style="dim")
    for i, label in enumerate(labels):
        text.append(label.rjust(margin), style="bold" if i in marked else "")
        text.append(" │", style="dim")
        for j in shown:
            share = (float(values[i, j]) - low) / (high - low) if high > low else 0.0
            word = cut(words[i][j].strip() or repr(words[i][j])[1:-1], _WORD)
            text.append(f"{word.ljust(_WORD)} ", style=_style(kind, share))
        text.append("\n")
    return text


def _names(columns: Sequence[str], many: int) -> list[str]:
    return list(columns) or [str(i) for i in range(many)]


def _shade(share: float) -> str:
    return _SHADES[min(len(_SHADES) - 1, max(0, round(share * (len(_SHADES) - 1))))]


def _style(kind: str, share: float) -> str:
    base = _COLORS.get(kind, _COLORS["state"])
    part = min(1.0, max(0.0, share))
    red, green, blue = (round(90 + (c - 90) * (0.4 + 0.6 * part)) for c in base)
    return f"not bold rgb({red},{green},{blue})"
