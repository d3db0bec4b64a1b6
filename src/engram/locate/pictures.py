"""How traces are drawn: which arrays and words go into which picture (ROME paper, figures 1-3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engram.locate.groups import GROUPS
from engram.locate.tracing.words import metric_name, site_name
from engram.plots import (
    COLORS,
    LETTER,
    Bar,
    Line,
    bar_chart,
    color_map,
    drawable,
    finish,
    heat_map,
    heat_text,
    line_plot,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text

    from engram.locate.tracing.averages import AverageTrace
    from engram.locate.tracing.result import CausalTrace
    from engram.locate.tracing.severed import SeveredComparison


def draw_trace(trace: "CausalTrace", sites: Sequence[str], path: str | Path | None, *, dark: bool = False) -> "Figure":
    """Draw heat maps side by side; the palest colour is the corrupted prompt's value."""
    margin = max(len(drawable(label)) for label in trace.labels) * LETTER
    figure = new_figure((4.2 + margin) * len(sites), 1.5 + 0.25 * len(trace.positions))
    for i, site in enumerate(sites):
        values = (trace.corrupted + trace.effect(site)).numpy()
        heat_map(
            figure.add_subplot(1, len(sites), i + 1),
            values,
            rows=trace.labels,
            marked=trace.subject_rows,
            title=f"restoring {site_name(site, int(trace.settings['window']))}{_severed(trace)}",
            bar_label=metric_name(trace),
            color_map=color_map(site, dark=dark),
            low=min(trace.corrupted, float(values.min())),
        )
    return finish(figure, path, dark=dark)


def trace_in_terminal(trace: "CausalTrace") -> "Text":
    """Return what a terminal shows of a trace: numbers, then a heat map per site."""
    from rich.text import Text

    begin, end = trace.subject_range
    text = Text()
    for i, token in enumerate(trace.tokens):
        text.append(token, style="bold underline" if begin <= i < end else "")
    text.append(f" →{trace.answer}", style="italic")
    text.append("\n" if trace.answer == trace.predicted else f" (but the model says{trace.predicted})\n")
    text.append(f"{metric_name(trace)}: clean {trace.clean:.3g}, corrupted {trace.corrupted:.3g} ({trace.noise})\n")
    for site in trace.samples:
        text.append("\n")
        text.append(
            heat_text(
                trace.effect(site).numpy(),
                rows=trace.labels,
                marked=trace.subject_rows,
                title=f"{site_name(site, int(trace.settings['window']))}{_severed(trace)}: indirect effect",
                kind=site,
            )
        )
        text.append("\n")
    return text


def draw_average(average: "AverageTrace", path: str | Path | None, *, dark: bool = False) -> "Figure":
    """Draw the average indirect effect over layers: one plot per site, one line per token group."""
    sites = list(average.effects)
    figure = new_figure(1.0 + 3.8 * len(sites), 3.6)
    for i, site in enumerate(sites):
        axes = figure.add_subplot(1, len(sites), i + 1)
        lines = [
            Line(label=group, values=np.array(mean.mean), half_width=np.array(mean.half_width))
            for group in GROUPS
            if (mean := average.effects[site].get(group)) is not None
        ]
        title = f"restoring {site_name(site, average.window)}"
        line_plot(axes, lines, title=title, y_label="average indirect effect" if i == 0 else "")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.suptitle(f"{average.count} facts, {average.model}", fontsize="medium")
    return finish(figure, path, dark=dark)


def average_in_terminal(average: "AverageTrace") -> "Text":
    """Return what a terminal shows of averages: a heat map per site, one row per token group."""
    from rich.text import Text

    ate = average.total
    text = Text(f"{average.count} facts traced, {average.dropped} dropped that {average.model} does not know")
    text.append(f", {len(average.failed)} failed\n" if average.failed else "\n")
    text.append(f"clean {average.clean.mean:.3g}, corrupted {average.corrupted.mean:.3g}, ")
    text.append(f"average total effect {ate.mean:.3g} ± {ate.half_width:.2g} (95 %)\n")
    for site, groups in average.effects.items():
        peak = average.peak(site)
        text.append("\n")
        text.append(
            heat_text(
                np.array([groups[group].mean for group in groups]),
                rows=list(groups),
                marked=[i for i, group in enumerate(groups) if "subject" in group],
                title=f"{site_name(site, average.window)}: average indirect effect",
                kind=site,
            )
        )
        text.append(f"\npeak {peak.effect:.3g} ± {peak.half_width:.2g} at the {peak.group}, layer {peak.layer}\n")
    return text


def draw_severed(comparison: "SeveredComparison", path: str | Path | None, *, dark: bool = False) -> "Figure":
    """Draw bars per layer: the state's effect at the last subject token, whole and with a path severed."""
    figure = new_figure(8.0, 3.2)
    parts = (
        ("state restored", comparison.whole, COLORS["state"]),
        ("MLP severed", comparison.mlp, COLORS["mlp"]),
        ("attention severed", comparison.attn, COLORS["attn"]),
    )
    bars: list[Bar] = []
    for label, average, color in parts:
        mean = average.effects["state"]["last subject token"]
        bars.append(Bar(label=label, values=np.array(mean.mean), half_width=np.array(mean.half_width), color=color))
    title = f"one state at the last subject token, {comparison.whole.count} facts"
    bar_chart(figure.add_subplot(), bars, title=title, y_label="average indirect effect")
    return finish(figure, path, dark=dark)


def _severed(trace: "CausalTrace") -> str:
    severed = trace.settings["severed"]
    return "" if severed is None else f", {'MLPs' if severed == 'mlp' else 'attention'} severed"
