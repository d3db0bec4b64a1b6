"""Figures of reports: bars with intervals, and retention curves of sequential runs."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engram.errors import RunError
from engram.evaluation.report import Report, Run, averaged
from engram.evaluation.verdicts import COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTAGES = ("S", "ES", "PS", "NS")
_PALETTE = ("#9e9e9e", "#6a51a3", "#238b45", "#cb181d", "#f16913", "#2171b5", "#8c6d31", "#525252")


def bars(
    report: Report, path: str | Path | None = None, *, columns: Sequence[str] | None = None, dark: bool = False
) -> "Figure":
    """Draw one group of bars per column and one bar per run, with 95 % intervals; save if a path is given.

    Raises:
        RunError: no run has any of the columns.
        SettingError: there is no such column.
    """
    from engram.plots import Bar, bar_chart, finish, new_figure

    keys = [key for key in report.keys(columns or PERCENTAGES) if key in report.columns]
    if not keys:
        wanted = report.columns[:4]
        if not wanted:
            raise RunError("There is nothing to draw: no case was scored.")
        keys = wanted
    figure = new_figure(1.6 + 1.4 * len(keys), 3.4)
    axes = figure.subplots()
    drawn: list[Bar] = []
    for i, (run, cells) in enumerate(report.rows(keys)):
        values = np.array([np.nan if c is None else c.value for c in cells.values()])
        half = np.nan_to_num(np.array([0.0 if c is None else c.half_width for c in cells.values()]))
        drawn.append(Bar(label=run.name, values=values, half_width=half, color=_PALETTE[i % len(_PALETTE)]))
    bar_chart(axes, drawn, x_label="", y_label="% (95 % intervals)")
    axes.set_xticks(range(len(keys)), [textwrap.fill(COLUMNS[key].label, 14) for key in keys])
    return finish(figure, path, dark=dark)


def retention(run: Run, path: str | Path | None = None, *, dark: bool = False) -> "Figure":
    """Draw how earlier edits fare as later ones pile up; save if a path is given.

    Raises:
        RunError: the run is not sequential, or has no finished checkpoint.
    """
    from engram.plots import Line, finish, line_plot, new_figure

    points = run.retention()
    if not points:
        raise RunError(f"{run.name!r} has no checkpoints: retention curves need `--keep`.")
    figure = new_figure(5.0, 3.4)
    axes = figure.subplots()
    lines: list[Line] = []
    for key in PERCENTAGES:
        cells = [averaged(COLUMNS[key], records) for records in points.values()]
        if any(cell is not None for cell in cells):
            values = np.array([np.nan if c is None else c.value for c in cells])
            half = np.array([np.nan if c is None else c.half_width for c in cells])
            lines.append(Line(label=COLUMNS[key].label, values=values, half_width=half))
    line_plot(axes, lines, title=f"{run.name}: all cases edited so far", x_label="number of edits", y_label="%")
    axes.set_xticks(range(len(points)), [str(n) for n in points])
    axes.legend(fontsize="small", frameon=False)
    return finish(figure, path, dark=dark)
