"""A heat map with one row per token and one column per layer."""

import textwrap
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from engram.plots.lettering import drawable, lettered
from engram.plots.style import layer_ticks

_TITLE = 40
"""Characters of a line of the title."""


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "token layer"],
    *,
    rows: Sequence[str],
    marked: Collection[int] = (),
    title: str = "",
    x_label: str = "layer",
    bar_label: str = "",
    color_map: str | Colormap = "Purples",
    low: float | None = None,
) -> None:
    """Draw a heat map into axes.

    Args:
        axes: where to draw.
        values: what to draw.
        rows: one label per row.
        marked: rows whose labels are drawn bold, with a star: the subject.
        title: above the map.
        x_label: below it.
        bar_label: beside the colour bar.
        color_map: a matplotlib colour map, or its name.
        low: value of the palest colour; the smallest value when not given.
    """
    height, width = values.shape
    mesh = axes.pcolormesh(np.arange(width + 1) - 0.5, np.arange(height + 1) - 0.5, values, cmap=color_map, vmin=low)
    axes.invert_yaxis()
    labels = [f"{drawable(row)}*" if i in marked else drawable(row) for i, row in enumerate(rows)]
    axes.set_yticks(np.arange(height), labels)
    for i in marked:
        axes.get_yticklabels()[i].set_fontweight("bold")
    axes.xaxis.set_major_locator(layer_ticks())
    axes.set_title(textwrap.fill(title, _TITLE), fontsize="medium")
    axes.set_xlabel(x_label)
    bar = axes.figure.colorbar(mesh, ax=axes, label=drawable(bar_label))
    lettered([*axes.get_yticklabels(), bar.ax.yaxis.label])
