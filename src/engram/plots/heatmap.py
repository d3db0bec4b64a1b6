"""A heat map with one row per token and one column per layer."""

import textwrap
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.text import Text

from engram.plots.lettering import drawable, lettered
from engram.plots.style import layer_ticks

_TITLE = 40
"""Characters of a line of the title."""
_FAR = 1000.0
_LUMINANCE, _MIDDLE = np.array([0.2126, 0.7152, 0.0722]), 0.5


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "token layer"],
    *,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    marked: Collection[int] = (),
    title: str = "",
    x_label: str = "layer",
    bar_label: str = "",
    color_map: str | Colormap = "Purples",
    low: float | None = None,
    words: Sequence[Sequence[str]] = (),
) -> None:
    """Draw a heat map into axes.

    Args:
        axes: where to draw.
        values: what to draw.
        rows: one label per row.
        columns: one label per column; numbers from 0 when not given.
        marked: rows whose labels are drawn bold, with a star: the subject.
        title: above the map.
        x_label: below it.
        bar_label: beside the colour bar.
        color_map: a matplotlib colour map, or its name.
        low: value of the palest colour; the smallest value when not given. Values from 1 up over more than three
            powers of ten, such as ranks, are coloured by their logarithm.
        words: a word for every cell.
    """
    height, width = values.shape
    far = bool((values >= 1).all()) and float(values.max()) > _FAR
    scale: dict[str, Any] = {"norm": "log"} if far else {"vmin": low}
    mesh = axes.pcolormesh(np.arange(width + 1) - 0.5, np.arange(height + 1) - 0.5, values, cmap=color_map, **scale)
    axes.invert_yaxis()
    labels = [f"{drawable(row)}*" if i in marked else drawable(row) for i, row in enumerate(rows)]
    axes.set_yticks(np.arange(height), labels)
    for i in marked:
        axes.get_yticklabels()[i].set_fontweight("bold")
    if columns:
        axes.set_xticks(np.arange(width), [drawable(column, 8) for column in columns])
    else:
        axes.xaxis.set_major_locator(layer_ticks())
    axes.set_title(textwrap.fill(title, _TITLE), fontsize="medium")
    axes.set_xlabel(x_label)
    bar = axes.figure.colorbar(mesh, ax=axes, label=drawable(bar_label))
    inside = _write(axes, mesh, words)
    lettered([*axes.get_yticklabels(), *axes.get_xticklabels(), *inside, bar.ax.yaxis.label])


def _write(axes: Axes, mesh: QuadMesh, words: Sequence[Sequence[str]]) -> list[Text]:
    """Write a word into every cell, dark on pale ones and pale on dark ones."""
    colors = mesh.to_rgba(np.asarray(mesh.get_array()))
    return [
        axes.text(x, y, word, ha="center", va="center", fontsize="x-small", color=_ink(colors[y, x]), clip_on=True)
        for y, row in enumerate(words)
        for x, word in enumerate(row)
    ]


def _ink(color: Float[np.ndarray, "4"]) -> str:
    """Return what can be read on a colour."""
    return "black" if float(color[:3] @ _LUMINANCE) > _MIDDLE else "white"
