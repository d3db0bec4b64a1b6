"""The heat map of a trace: a picture to point at, the same numbers as a table to walk through, and a sentence."""

from collections.abc import Mapping
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
_ROW, _MARGIN = 28, 96


def require_site(site: str) -> str:
    """Return a site's name.

    Raises:
        SettingError: there is no such site.
    """
    if site not in SITES:
        raise SettingError(f"There is no site {site!r} to show. {did_you_mean(site, SITES)}")
    return site


def heat_map(trace: "CausalTrace", site: str) -> go.Figure:
    """Draw the probability of the answer for every restored token and layer.

    Args:
        trace: a trace of this site.
        site: `state`, `mlp` or `attn`.
    """
    scores = trace.scores[require_site(site)]
    labels = row_labels(trace)
    names = [f"{label}<br>layer {layer}" for label in labels for layer in range(scores.shape[1])]
    hover = [names[row * scores.shape[1] : (row + 1) * scores.shape[1]] for row in range(len(labels))]
    picture: Any = go.Heatmap(
        z=[[round(float(value), 4) for value in row] for row in scores],
        x=list(range(scores.shape[1])),
        y=list(range(len(labels))),
        text=hover,
        hovertemplate="%{text}<br>p(" + _plain(trace.answer) + ") = %{z:.3f}<extra></extra>",
        colorscale=_COLOURS[site],
        zmin=0,
        zmax=max(trace.clean, float(scores.max()), 1e-6),
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "p"}, "thickness": 12},
    )
    figure = go.Figure(picture)
    figure.update_layout(
        height=_MARGIN + _ROW * len(labels),
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
        title={"text": f"p({_plain(trace.answer)}) with restored {SITES[site]}", "font": {"size": 14}},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={
            "title": {"text": "layer"},
            "dtick": max(1, scores.shape[1] // 12),
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "autorange": "reversed",
            "tickvals": list(range(len(labels))),
            "ticktext": labels,
            "automargin": True,
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        },
        dragmode=False,
    )
    return figure


def row_labels(trace: "CausalTrace") -> list[str]:
    """Return the traced tokens; those of the subject end with a star."""
    begin, end = trace.subject_range
    return [f"{_plain(trace.tokens[t])}{'*' if begin <= t < end else ''}" for t in trace.positions]


def number_table(trace: "CausalTrace", site: str) -> str:
    """Return the heat map as a grid of numbers: arrow keys walk, Enter chooses a layer."""
    scores = trace.scores[require_site(site)]
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
    answer = safe(visible(trace.answer))
    return (
        f"<p class='engram-lead'>p({answer}) with restored {SITES[site]}, by token (* subject) and layer. "
        f"Arrow keys walk, Enter chooses the layer.</p>"
        f'<div class="engram-scroll"><table class="engram-grid" role="grid" '
        f'aria-label="p({answer}) by token and layer">'
        f'<thead><tr role="row"><td></td>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def in_words(trace: "CausalTrace", site: str) -> str:
    """Return what the heat map shows, in sentences."""
    effect = trace.effect(require_site(site))
    row, layer = divmod(int(effect.argmax()), effect.shape[1])
    position = trace.positions[row]
    last = trace.subject_range[1] - 1
    at_last = effect[trace.positions.index(last)]
    says = "" if trace.predicted == trace.answer else f" (it says {visible(trace.predicted)!r})"
    return (
        f"Clean, the model gives {visible(trace.answer)!r} a probability of {trace.clean:.3f}{says}; with the subject "
        f"{trace.subject!r} corrupted, {trace.corrupted:.3f}. Restored {SITES[site]} bring back most at "
        f"{visible(trace.tokens[position])!r}, layer {layer}: {trace.corrupted + float(effect[row, layer]):.3f}. "
        f"At the last subject token, {visible(trace.tokens[last])!r}, the best layer is {int(at_last.argmax())}: "
        f"{trace.corrupted + float(at_last.max()):.3f}."
    )


def _plain(token: str) -> str:
    """Return a token as plotly shows it: nothing in it is markup."""
    return visible(token).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
