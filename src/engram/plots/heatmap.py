"""A heat map with one row per token and one column per layer."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "token layer"],
    *,
    rows: Sequence[str],
    marked: Collection[int] = (),
    title: str = "",
    x_label: str = "layer",
    bar_label: str = "",
    color_map: str = "Purples",
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
        color_map: name of a matplotlib colour map.
        low: value of the palest colour; the smallest value when not given.
    """
    mesh = axes.pcolormesh(values, cmap=color_map, vmin=low)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{row}*" if i in marked else row for i, row in enumerate(rows)])
    for i in marked:
        axes.get_yticklabels()[i].set_fontweight("bold")
    step = max(1, values.shape[1] // 10)
    axes.set_xticks(np.arange(0, values.shape[1], step) + 0.5, [str(i) for i in range(0, values.shape[1], step)])
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label)
    axes.figure.colorbar(mesh, ax=axes, label=bar_label)
