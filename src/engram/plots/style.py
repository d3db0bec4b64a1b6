"""What all figures share: colours per site as in the ROME paper, sizes, saving."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from engram.errors import SettingError

COLORS = {"state": "#6a51a3", "mlp": "#238b45", "attn": "#cb181d"}
"""Line and bar colour of each site."""

MAPS = {"state": "Purples", "mlp": "Greens", "attn": "Reds"}
"""Colour map of each site."""

SUFFIXES = (".pdf", ".png", ".svg")


class Picture(Figure):
    """A figure that notebooks show when it is the result of a cell, without pyplot and its magic commands."""

    def _repr_png_(self) -> bytes:
        data = BytesIO()
        self.savefig(data, format="png", dpi=100)
        return data.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches."""
    return Picture(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a .png, .svg or .pdf file, whole or not at all; folders are made.

    Raises:
        SettingError: another kind of file, or one that cannot be written.
    """
    where = Path(path)
    if where.suffix.lower() not in SUFFIXES:
        raise SettingError(f"Pictures are written as {', '.join(SUFFIXES)}; {where.name!r} is none of these.")
    part = where.with_name(f".{where.name}.part")
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, format=where.suffix[1:].lower(), dpi=150)
        part.replace(where)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise SettingError(f"The picture {where} cannot be written: {error.strerror}.") from error
    return where
