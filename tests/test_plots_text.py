"""Figures can be read: words do not run into each other, nothing is cut off, and no letter is an empty box."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from families import golden_lm
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from engram.evaluation.figures import bars
from engram.locate import trace, trace_many
from engram.plots import Bar, Line, bar_chart, color_map, drawable, finish, lettering, line_plot, new_figure
from test_locate_averages import FACTS, OPTIONS
from test_showing import many_runs

LAYERS = [18, 30, 48]
TOKENS = ("The", " pneumonoultramicroscopicsilicovolcanoconiosis", "\n", " $x^2$ and $y_", " 東京", " Ελλάδα", " مرحبا")


def texts(figure: Figure) -> list[Text]:
    """The texts that are drawn: ticks outside the axes' limits are not."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = [part for part in figure.findobj(Text) if isinstance(part, Text) and part.get_text() and part.get_visible()]
    hidden = {id(label) for axes in figure.axes for label in outside(axes)}
    return [text for text in found if id(text) not in hidden]


def outside(axes: Axes) -> list[Text]:
    hidden: list[Text] = []
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = min(limits), max(limits)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            hidden += [tick.label2] if low <= tick.get_loc() <= high else [tick.label1, tick.label2]
    return hidden


def require_readable(figure: Figure) -> None:
    every = texts(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in every]
    for (a, one), (b, other) in combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1)), (a, b)
    whole = figure.bbox.padded(1)
    for text, box in boxes:
        assert whole.contains(box.x0, box.y0) and whole.contains(box.x1, box.y1), text


def many_layers(layers: int, **changes: Any) -> Any:
    found = trace(golden_lm(), FACTS[0], **OPTIONS)
    generator = torch.Generator().manual_seed(0)
    samples = {site: torch.rand(len(TOKENS), layers, 2, generator=generator) for site in found.samples}
    places = {"tokens": TOKENS, "positions": tuple(range(len(TOKENS))), "subject_range": (1, 2)}
    return replace(found, samples=samples, answer=" tar$get$ 東京", settings={**found.settings, **changes}, **places)


@pytest.mark.parametrize("layers", LAYERS)
def test_heat_maps_of_any_depth_can_be_read(layers: int) -> None:
    figure = many_layers(layers, window=10, severed="attn" if layers == max(LAYERS) else None).plot()
    require_readable(figure)
    ticks = [t for t in figure.axes[0].get_xticks() if -0.5 <= t <= layers - 0.5]
    assert len(ticks) >= 3 and all(t == round(t) for t in ticks)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", ["lines", "bars"])
def test_lines_and_bars_of_any_depth_can_be_read(layers: int, kind: str) -> None:
    figure, values = new_figure(3.0, 3.0), np.linspace(0, 1, layers)
    if kind == "lines":
        line_plot(figure.add_subplot(), [Line(label="a", values=values, half_width=values)], title="title")
    else:
        bar = Bar(label="a", values=values, half_width=values, color="C0")
        bar_chart(figure.add_subplot(), [bar], title="title")
    require_readable(figure)
    assert len([t for t in figure.axes[0].get_xticks() if 0 <= t < layers]) >= 3


def test_averages_and_reports_can_be_read() -> None:
    require_readable(trace_many(golden_lm(), FACTS[:2], **OPTIONS).plot())
    report = many_runs()
    columns = ["Says it", "Unchanged", "Efficacy", "Paraphrase", "Specificity", "Perplexity"]
    require_readable(bars(replace(report, runs=report.runs[:4]), columns=columns))


def test_words_of_models_are_never_formulas_and_never_boxes(recwarn: pytest.WarningsRecorder) -> None:
    figure = many_layers(6).plot("mlp")
    labels = {text.get_text(): text for text in texts(figure)}
    assert "$x^2$ and $y_" in labels and not labels["$x^2$ and $y_"].get_parse_math()
    assert "pneumonoultr…anoconiosis*" in labels
    assert [w for w in recwarn if "missing from font" in str(w.message)] == []


def test_letters_that_no_font_has_are_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = frozenset(get_font(findfont(FontProperties())).get_charmap())
    name, letter = next(
        (font.name, chr(code))
        for font in fontManager.ttflist
        for code in get_font(findfont(FontProperties(font.name))).get_charmap()
        if code not in usual and chr(code).isprintable()
    )
    for wide, shown in ((("no such font",), letter.encode("unicode_escape").decode()), ((name,), letter)):
        lettering._family.cache_clear()  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(lettering, "_WIDE", wide)
        assert drawable(f"a{letter}") == f"a{shown}"
    text = new_figure(1.0, 1.0).text(0, 0, letter)
    lettering.lettered([text])
    assert name in text.get_fontfamily()
    lettering._family.cache_clear()  # pyright: ignore[reportPrivateUsage]


def luminance(color: Any) -> float:
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("site", ["state", "mlp", "attn"])
def test_dark_maps_rise_from_dark_to_bright_and_light_ones_the_other_way(site: str) -> None:
    dark, light = color_map(site, dark=True), color_map(site)
    shades = [luminance(dark(x)) for x in np.linspace(0, 1, 20)]
    assert shades == sorted(shades) and shades[0] < 0.03 + 0.1 and shades[-1] > 0.8
    assert luminance(light(0.0)) > 0.9 > luminance(light(1.0))


def test_dark_figures_have_light_words_on_a_dark_ground(tmp_path: Any) -> None:
    figure = many_layers(6).plot(path=tmp_path / "dark.png", dark=True)
    assert (tmp_path / "dark.png").stat().st_size > 1000
    assert all(luminance(text.get_color()) > 0.6 for text in texts(figure))
    assert all(luminance(part.get_facecolor()[:3]) < 0.15 for part in (figure, *figure.axes))
    plain = many_layers(6).plot()
    assert luminance(plain.get_facecolor()[:3]) == pytest.approx(1)
    assert finish(plain, transparent=True).get_facecolor()[3] == 0
