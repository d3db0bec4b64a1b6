"""Panels side by side: heat maps, words in cells or lines, whatever the numbers are about."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.text import Text

from engram.plots.heatmap import heat_map
from engram.plots.lettering import drawable
from engram.plots.lines import Line, line_plot
from engram.plots.style import LETTER, color_map, finish, new_figure
from engram.plots.terminal import heat_text, word_text

_WORD = 9
"""Characters of a word that stand in a cell."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One picture among several: numbers over rows and columns.

    Args:
        values: the numbers.
        rows: one label per row.
        columns: one label per column; numbers from 0 when not given.
        marked: rows that stand out: the subject.
        title: above it.
        kind: decides the colour: "state", "mlp", "attn".
        low: the number of the palest colour; the smallest one when not given.
        bar_label: what the numbers are.
        across: what the columns are.
        words: a word for every cell.
        half_width: half of the interval around every number, where it is known.
    """

    values: Float[np.ndarray, "row column"]
    rows: Sequence[str]
    columns: Sequence[str] = ()
    marked: Sequence[int] = ()
    title: str = ""
    kind: str = "state"
    low: float | None = None
    bar_label: str = ""
    across: str = "layer"
    words: Sequence[Sequence[str]] = ()
    half_width: Float[np.ndarray, "row column"] | None = None


def heat_panels(panels: Sequence[Panel], path: str | Path | None = None, *, dark: bool = False) -> Figure:
    """Draw heat maps side by side, with words in their cells where there are any, and save if a path is given."""
    margin = max(len(drawable(label)) for panel in panels for label in panel.rows) * LETTER
    wide = max(_WORD * LETTER * panel.values.shape[1] if panel.words else 2.6 for panel in panels)
    figure = new_figure((1.6 + wide + margin) * len(panels), 1.5 + 0.25 * max(len(panel.rows) for panel in panels))
    for i, panel in enumerate(panels):
        heat_map(
            figure.add_subplot(1, len(panels), i + 1),
            panel.values,
            rows=panel.rows,
            columns=panel.columns,
            marked=panel.marked,
            title=panel.title,
            x_label=panel.across,
            bar_label=panel.bar_label,
            color_map=color_map(panel.kind, dark=dark),
            low=panel.low,
            words=[[drawable(word.strip() or repr(word)[1:-1], _WORD - 1) for word in row] for row in panel.words],
        )
    return finish(figure, path, dark=dark)


def line_panels(
    panels: Sequence[Panel], path: str | Path | None = None, *, title: str = "", y_label: str = "", dark: bool = False
) -> Figure:
    """Draw one line per row and one plot per panel, side by side with one legend, and save if a path is given.

    Args:
        panels: what to draw; a band stands where a half width is known.
        path: a .png, .svg or .pdf file.
        title: above all of them.
        y_label: what the numbers are.
        dark: for a dark page.
    """
    figure = new_figure(1.0 + 3.8 * len(panels), 3.6)
    for i, panel in enumerate(panels):
        bands = np.full_like(panel.values, np.nan) if panel.half_width is None else panel.half_width
        lines = [
            Line(label=label, values=values, half_width=band)
            for label, values, band in zip(panel.rows, panel.values, bands, strict=True)
        ]
        axes = figure.add_subplot(1, len(panels), i + 1)
        line_plot(axes, lines, title=panel.title, x_label=panel.across, y_label=y_label if i == 0 else "")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.suptitle(title, fontsize="medium")
    return finish(figure, path, dark=dark)


def text_panel(panel: Panel) -> Text:
    """Return a panel as coloured text: its words in a table, or a heat map."""
    if panel.words:
        return word_text(
            panel.values,
            panel.words,
            rows=panel.rows,
            columns=panel.columns,
            marked=panel.marked,
            title=panel.title,
            kind=panel.kind,
            low=panel.low or 0.0,
        )
    return heat_text(
        panel.values,
        rows=panel.rows,
        columns=panel.columns,
        marked=panel.marked,
        title=panel.title,
        kind=panel.kind,
        low=panel.low or 0.0,
        across=panel.across,
    )
