"""Drawing arrays: heat maps, lines with bands, bars. Knows nothing of traces, edits or runs.

Figures are plain `matplotlib.figure.Figure` objects; pyplot's global state is never touched.
"""

from engram.plots.bars import Bar, bar_chart
from engram.plots.heatmap import heat_map
from engram.plots.lettering import drawable
from engram.plots.lines import Line, line_plot
from engram.plots.panels import Panel, heat_panels, line_panels, text_panel
from engram.plots.style import COLORS, DARK_MAPS, LETTER, MAPS, color_map, finish, new_figure, save_figure
from engram.plots.terminal import heat_text, word_text

__all__ = [
    "COLORS",
    "DARK_MAPS",
    "LETTER",
    "MAPS",
    "Bar",
    "Line",
    "Panel",
    "bar_chart",
    "color_map",
    "drawable",
    "finish",
    "heat_map",
    "heat_panels",
    "heat_text",
    "line_panels",
    "line_plot",
    "new_figure",
    "save_figure",
    "text_panel",
    "word_text",
]
