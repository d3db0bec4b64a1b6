"""Bars side by side for each layer: what remains of an effect when a path is severed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from engram.plots.style import LETTER, layer_ticks

_ERROR = {"lw": 0.8, "ecolor": "0.5"}


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


def _inches(axes: Axes) -> float:
    return axes.figure.bbox.width / axes.figure.get_dpi()


def bar_chart(axes: Axes, bars: Sequence[Bar], *, title: str = "", x_label: str = "layer", y_label: str = "") -> None:
    """Draw groups of bars into axes, one group per layer."""
    width = 0.8 / max(1, len(bars))
    for i, bar in enumerate(bars):
        places = np.arange(len(bar.values)) + (i - (len(bars) - 1) / 2) * width
        axes.bar(places, bar.values, width, yerr=bar.half_width, label=bar.label, color=bar.color, error_kw=_ERROR)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(layer_ticks())
    axes.set_ylabel(y_label)
    entry = 0.5 + LETTER * max((len(bar.label) for bar in bars), default=0)
    columns = max(1, min(6, len(bars), int(_inches(axes) / entry)))
    axes.figure.legend(loc="outside upper center", ncols=columns, fontsize="small", frameon=False)
