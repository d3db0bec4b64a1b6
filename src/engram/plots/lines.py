"""Lines over layers, with bands for their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from engram.plots.style import layer_ticks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """One line.

    Args:
        label: its name in the legend.
        values: its height at x = 0, 1, ...
        half_width: half the height of the band around it.
    """

    label: str
    values: Float[np.ndarray, " layer"]
    half_width: Float[np.ndarray, " layer"]


def line_plot(axes: Axes, lines: Sequence[Line], *, title: str = "", x_label: str = "layer", y_label: str = "") -> None:
    """Draw lines with bands into axes; an undefined half width (NaN) draws no band."""
    for line in lines:
        layers = np.arange(len(line.values))
        (drawn,) = axes.plot(layers, line.values, label=line.label, linewidth=1.5)
        axes.fill_between(
            layers,
            line.values - line.half_width,
            line.values + line.half_width,
            alpha=0.2,
            color=drawn.get_color(),
            linewidth=0,
        )
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(layer_ticks())
    axes.set_ylabel(y_label)
