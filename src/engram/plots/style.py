"""What all figures share: colours per site as in the ROME paper, sizes, saving."""

from io import BytesIO
from pathlib import Path

from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from engram.errors import SettingError
from engram.storage import write_file

COLORS = {"state": "#6a51a3", "mlp": "#238b45", "attn": "#cb181d"}
"""Line and bar colour of each site."""

MAPS = {"state": "Purples", "mlp": "Greens", "attn": "Reds"}
"""Colour map of each site."""

DARK_MAPS = {
    "state": ("#1a1a20", "#45307c", "#8d70d0", "#e8e0ff"),
    "mlp": ("#1a1a20", "#155430", "#3da566", "#d9f6e1"),
    "attn": ("#1a1a20", "#7b1b1d", "#e3504f", "#ffe0dc"),
}
"""Colours of each site on a dark page, from the lowest value to the highest, evenly spaced."""

BACKGROUND, FOREGROUND = "#1a1a20", "#d8d8e0"
"""Of dark figures."""

LETTER = 0.09
"""About the width of a letter, in inches."""

SUFFIXES = (".pdf", ".png", ".svg")


def layer_ticks() -> MaxNLocator:
    """Return what places ticks at layers: whole numbers, as many as there is room for."""
    return MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10])


class Picture(Figure):
    """A figure that notebooks show when it is the result of a cell, without pyplot and its magic commands."""

    def _repr_png_(self) -> bytes:
        data = BytesIO()
        self.savefig(data, format="png", dpi=100)
        return data.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches."""
    return Picture(figsize=(width, height), layout="constrained")


def color_map(kind: str, *, dark: bool = False) -> Colormap:
    """Return a site's colour map, else that of states; on a dark page low values are dark, and high ones bright."""
    if dark:
        return LinearSegmentedColormap.from_list(f"{kind} on dark", DARK_MAPS.get(kind, DARK_MAPS["state"]))
    return colormaps[MAPS.get(kind, MAPS["state"])]


def finish(figure: Figure, path: str | Path | None = None, *, dark: bool = False, transparent: bool = False) -> Figure:
    """Return a drawn figure in its colours, saved if a path is given.

    Args:
        figure: everything has been drawn into it.
        path: a .png, .svg or .pdf file.
        dark: light text and lines on a dark ground.
        transparent: no ground at all.

    Raises:
        SettingError: another kind of file, or one that cannot be written.
    """
    if dark:
        for part in figure.findobj(Text):
            part.set_color(FOREGROUND)
        for axes in figure.axes:
            axes.tick_params(colors=FOREGROUND)
            for spine in axes.spines.values():
                spine.set_edgecolor(FOREGROUND)
    ground = "none" if transparent else BACKGROUND if dark else figure.get_facecolor()
    for part in (figure, *figure.axes):
        part.set_facecolor(ground)
    if path is not None:
        save_figure(figure, path)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a .png, .svg or .pdf file, whole or not at all; folders are made.

    Raises:
        SettingError: another kind of file, or one that cannot be written.
    """
    where = Path(path)
    if where.suffix.lower() not in SUFFIXES:
        raise SettingError(f"Pictures are written as {', '.join(SUFFIXES)}; {where.name!r} is none of these.")
    drawn = BytesIO()
    figure.savefig(drawn, format=where.suffix[1:].lower(), dpi=150)
    try:
        write_file(where, drawn.getvalue())
    except OSError as error:
        raise SettingError(f"The picture {where} cannot be written: {error.strerror}.") from error
    return where
