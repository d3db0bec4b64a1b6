"""A heat map as coloured text, readable without colour too."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float
from rich.text import Text

_SHADES = " ·░▒▓█"
_COLORS = {"state": (128, 90, 213), "mlp": (56, 161, 105), "attn": (229, 62, 62)}


def heat_text(
    values: Float[np.ndarray, "token layer"],
    *,
    rows: Sequence[str],
    marked: Collection[int] = (),
    title: str = "",
    kind: str = "state",
    low: float = 0.0,
) -> Text:
    """Return a heat map as text: a row per token, a column per layer, darker for larger values.

    Args:
        values: what to draw.
        rows: one label per row.
        marked: rows that are drawn bold, with a star: the subject.
        title: the first line.
        kind: the site, which decides the colour.
        low: value of a blank cell.
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
    ticks = "".join(str(layer).ljust(wide * 5) for layer in range(0, values.shape[1], 5))
    text.append(f"{' ' * margin}  {ticks[: values.shape[1] * wide].rstrip()}  layer\n", style="dim")
    text.append(f"{' ' * margin}  {low:.3g} {_SHADES[1:]} {high:.3g}", style="dim")
    return text


def _shade(share: float) -> str:
    return _SHADES[min(len(_SHADES) - 1, max(0, round(share * (len(_SHADES) - 1))))]


def _style(kind: str, share: float) -> str:
    base = _COLORS.get(kind, _COLORS["state"])
    part = min(1.0, max(0.0, share))
    red, green, blue = (round(90 + (c - 90) * (0.4 + 0.6 * part)) for c in base)
    return f"not bold rgb({red},{green},{blue})"
