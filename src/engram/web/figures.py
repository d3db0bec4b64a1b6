"""What a trace shows: pictures to point at, the same numbers as tables to walk through, sentences, files."""

import csv
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from engram.errors import SettingError, did_you_mean
from engram.web.texts import safe, visible

if TYPE_CHECKING:
    from engram.locate import CausalTrace

SITES: Mapping[str, str] = {
    "state": "hidden states",
    "mlp": "MLP outputs",
    "attn": "attention outputs",
}
"""What can be shown, as people say it."""

_COLOURS = {"state": "Purples", "mlp": "Greens", "attn": "Reds"}
_ROW, _MARGIN = 21, 124
_TICKS = 8
_STEPS = (1, 2, 5, 10, 20, 50, 100)


def require_site(site: str) -> str:
    """Return a site's name.

    Raises:
        SettingError: there is no such site.
    """
    if site not in SITES:
        raise SettingError(f"There is no site {site!r} to show. {did_you_mean(site, SITES)}")
    return site


def site_title(trace: "CausalTrace", site: str) -> str:
    """Return what was restored, with the width of its window."""
    name, window = SITES[require_site(site)], int(trace.settings["window"])
    return name if site == "state" or window == 1 else f"{name}, {window} layers at a time"


def heat_map(trace: "CausalTrace", site: str) -> go.Figure:
    """Draw the probability of the answer for every restored token and layer.

    Args:
        trace: a trace of this site.
        site: `state`, `mlp` or `attn`.
    """
    title, scores = site_title(trace, site), trace.scores[site]
    labels = row_labels(trace)
    hover = [[f"{label}<br>layer {layer}" for layer in range(scores.shape[1])] for label in labels]
    top = max(trace.clean, *(float(each.max()) for each in trace.scores.values()), 1e-6)  # one scale for all maps
    picture: Any = go.Heatmap(
        z=[[round(float(value), 4) for value in row] for row in scores],
        x=list(range(scores.shape[1])),
        y=list(range(len(labels))),
        text=hover,
        hovertemplate="%{text}<br>p(" + _plain(trace.answer) + ") = %{z:.3f}<extra></extra>",
        colorscale=_COLOURS[site],
        zmin=0,
        zmax=top,
        xgap=1,
        ygap=1,
        colorbar=_colour_bar(f"p({_plain(trace.answer)})"),
    )
    figure = go.Figure(picture)
    figure.update_layout(
        height=_MARGIN + _ROW * len(labels),
        margin={"l": 8, "r": 12, "t": 32, "b": 80},
        title={"text": title, "font": {"size": 14}, "x": 0.5, "xanchor": "center"},
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={
            "title": {"text": "layer", "standoff": 6},
            "ticks": "",
            "dtick": next(step for step in _STEPS if scores.shape[1] <= step * _TICKS or step == _STEPS[-1]),
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "autorange": "reversed",
            "tickvals": list(range(len(labels))),
            "ticktext": labels,
            "automargin": True,
            "ticks": "",
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        },
        dragmode=False,
    )
    return figure


def _colour_bar(title: str) -> dict[str, Any]:
    """Return a bar that lies below the map and leaves the width to it."""
    return {
        "orientation": "h",
        "thickness": 8,
        "yref": "container",
        "y": 0.01,
        "yanchor": "bottom",
        "ypad": 0,
        "outlinewidth": 0,
        "nticks": 5,
        "title": {"text": title, "side": "right", "font": {"size": 12}},
    }


def row_labels(trace: "CausalTrace") -> list[str]:
    """Return the traced tokens; those of the subject end with a star."""
    begin, end = trace.subject_range
    return [f"{_plain(trace.tokens[t])}{'*' if begin <= t < end else ''}" for t in trace.positions]


# The same as tables


def number_tables(trace: "CausalTrace") -> str:
    """Return all heat maps as grids of numbers: arrow keys walk, Enter chooses a layer."""
    lead = "By token (* subject) and layer. Arrow keys walk, Enter chooses the layer."
    return f"<p class='engram-lead'>{lead}</p>{''.join(number_table(trace, site) for site in SITES)}"


def number_table(trace: "CausalTrace", site: str) -> str:
    """Return a heat map as a grid of numbers, each below its layer."""
    title, scores = site_title(trace, site), trace.scores[site]
    begin, end = trace.subject_range
    heads = "".join(f'<th scope="col">{layer}</th>' for layer in range(scores.shape[1]))
    rows: list[str] = []
    for row, position in enumerate(trace.positions):
        star = "*" if begin <= position < end else ""
        cells = "".join(
            f'<td role="gridcell" tabindex="{0 if row == layer == 0 else -1}" data-row="{row}" data-layer="{layer}">'
            f"{float(value):.2f}</td>"
            for layer, value in enumerate(scores[row])
        )
        rows.append(f'<tr role="row"><th scope="row">{safe(visible(trace.tokens[position]))}{star}</th>{cells}</tr>')
    name = f"p({safe(visible(trace.answer))}) with restored {title}"
    return (
        f'<h4>{name}</h4><div class="engram-scroll"><table class="engram-grid" role="grid" aria-label="{name}">'
        f'<thead><tr role="row"><th scope="col">layer</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# In words


def in_words(trace: "CausalTrace", says: str) -> str:
    """Return what the model says with and without its subject, in sentences."""
    answer, other = visible(trace.answer), visible(trace.predicted)
    begins = f", the beginning of {says!r}," if says != answer and says.startswith(answer) else ""
    instead = "" if trace.predicted == trace.answer else f" (it says {other!r})"
    return (
        f"The model goes on: {says!r}. Clean, the model gives {answer!r}{begins} a probability of "
        f"{trace.clean:.3f}{instead}; with the subject {trace.subject!r} corrupted, {trace.corrupted:.3f}."
    )


def peaks(trace: "CausalTrace", site: str) -> str:
    """Return where one site brings back most, in a sentence."""
    effect = trace.effect(require_site(site))
    row, layer = divmod(int(effect.argmax()), effect.shape[1])
    last = trace.subject_range[1] - 1
    at_last = effect[trace.positions.index(last)]
    name = SITES[site].replace("hidden", "Hidden").replace("attention", "Attention")
    return (
        f"{name} bring back most at {visible(trace.tokens[trace.positions[row]])!r}, layer {layer}: "
        f"{trace.corrupted + float(effect[row, layer]):.3f}; at the last subject token, "
        f"{visible(trace.tokens[last])!r}, in layer {int(at_last.argmax())}: "
        f"{trace.corrupted + float(at_last.max()):.3f}."
    )


def _plain(token: str) -> str:
    """Return a token as plotly shows it: nothing in it is markup."""
    return visible(token).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# Files


def as_png(trace: "CausalTrace") -> bytes:
    """Return the three maps as one picture, as `CausalTrace.plot` draws it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "trace.png"
        trace.plot(path=path)
        return path.read_bytes()


def as_csv(trace: "CausalTrace") -> bytes:
    """Return one line per site, token and layer, with the probability of the answer."""
    begin, end = trace.subject_range
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["site", "position", "token", "subject", "layer", "probability"])
    for site, scores in trace.scores.items():
        for row, position in enumerate(trace.positions):
            inside = "yes" if begin <= position < end else "no"
            for layer, value in enumerate(scores[row]):
                lines.writerow([site, position, trace.tokens[position], inside, layer, f"{float(value):.6g}"])
    return text.getvalue().encode()
