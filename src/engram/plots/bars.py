"""Bars side by side for each layer: what remains of an effect when a path is severed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bar:
    """One bar per layer.

    Args:
        label: its name in the legend.
        values: heights.
        half_width: half the length of the error bars.
        color: any matplotlib colour.
    """

    label: str
    values: Float[np.ndarray, " layer"]
    half_width: Float[np.ndarray, " layer"]
    color: str


def bar_chart(axes: Axes, bars: Sequence[Bar], *, title: str = "", x_label: str = "layer", y_label: str = "") -> None:
    """Draw groups of bars into axes, one group per layer."""
    width = 0.8 / max(1, len(bars))
    for i, bar in enumerate(bars):
        places = np.arange(len(bar.values)) + (i - (len(bars) - 1) / 2) * width
        axes.bar(places, bar.values, width, yerr=bar.half_width, label=bar.label, color=bar.color, error_kw={"lw": 0.6})
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(y_label)
    axes.figure.legend(loc="outside upper center", ncols=min(6, len(bars)), fontsize="small", frameon=False)
