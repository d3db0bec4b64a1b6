"""Pictures: the right numbers and words in the right places, and files written whole."""

from pathlib import Path

import numpy as np
import pytest
from families import golden_lm
from matplotlib.figure import Figure
from rich.console import Console

from engram.errors import SettingError
from engram.locate import trace, trace_many
from engram.plots import Bar, Line, bar_chart, heat_map, heat_text, line_plot, new_figure, save_figure
from test_locate_averages import FACTS, OPTIONS

VALUES = np.arange(12.0).reshape(3, 4)


def shown(thing: object, width: int = 120) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


def test_heat_map_has_tokens_downwards_and_marks_the_subject() -> None:
    figure = new_figure(4.0, 3.0)
    axes = figure.add_subplot()
    heat_map(axes, VALUES, rows=["The", "Kara", "is"], marked=[1], title="t", bar_label="p")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["The", "Kara*", "is"]
    assert [label.get_fontweight() for label in axes.get_yticklabels()] == ["normal", "bold", "normal"]
    assert axes.yaxis_inverted()
    np.testing.assert_array_equal(np.asarray(axes.collections[0].get_array()).ravel(), VALUES.ravel())
    assert len(figure.axes) == 2  # the map and its colour bar


def test_lines_have_bands() -> None:
    axes = new_figure(4.0, 3.0).add_subplot()
    line_plot(axes, [Line(label="a", values=VALUES[1], half_width=np.ones(4))])
    np.testing.assert_array_equal(np.asarray(axes.lines[0].get_ydata()), VALUES[1])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (3.0, 8.0)


def test_bars_stand_side_by_side() -> None:
    axes = new_figure(4.0, 3.0).add_subplot()
    bar_chart(axes, [Bar(label=n, values=VALUES[i], half_width=np.ones(4), color="C0") for i, n in enumerate("ab")])
    boxes = [patch for patch in axes.patches]
    assert [b.get_height() for b in boxes] == [*VALUES[0], *VALUES[1]]
    assert boxes[0].get_x() + boxes[0].get_width() == pytest.approx(boxes[4].get_x())


@pytest.mark.parametrize("kind", ["lines", "bars"])
def test_layers_are_whole_numbers_however_few(kind: str) -> None:
    axes, values = new_figure(4.0, 3.0).add_subplot(), np.ones(3)
    if kind == "lines":
        line_plot(axes, [Line(label="a", values=values, half_width=values)])
    else:
        bar_chart(axes, [Bar(label="a", values=values, half_width=values, color="C0")])
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_text_heat_map_is_readable_without_colour() -> None:
    text = shown(heat_text(VALUES, rows=["The", "Kara", "is"], marked=[1], title="title"))
    lines = text.splitlines()
    assert lines[0] == "title"
    assert lines[2].startswith("Kara* │")
    assert lines[3].endswith("██│")
    assert lines[1].startswith("  The │  ")
    assert "11" in lines[-1]
    assert heat_text(np.zeros((2, 3)), rows=["a", "b"]).plain.count("█") == 1  # only in the legend


def test_files_are_written_whole(tmp_path: Path) -> None:
    for suffix in ("png", "svg", "pdf"):
        save_figure(Figure(), tmp_path / "new" / f"a.{suffix}")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.pdf", "a.png", "a.svg"]
    with pytest.raises(SettingError, match=r"\.png"):
        save_figure(Figure(), tmp_path / "a.doc")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="cannot be written"):
        save_figure(Figure(), tmp_path / "file" / "a.png")


def test_a_trace_draws_itself(tmp_path: Path) -> None:
    found = trace(golden_lm(), FACTS[0], window=3, noise=0.25, samples=2)
    figure = found.plot("mlp", tmp_path / "mlp.png")
    assert (tmp_path / "mlp.png").read_bytes().startswith(b"\x89PNG")
    values = np.asarray(figure.axes[0].collections[0].get_array()).reshape(found.mlp.shape)
    np.testing.assert_allclose(values, found.mlp.numpy(), atol=1e-6)
    assert len(found.plot().axes) == 6
    with pytest.raises(SettingError, match="was not traced"):
        found.plot("mpl")
    text = shown(found)
    assert "MLP outputs (3 layers)" in text
    assert all(f"{found.labels[row]}*" in text for row in found.subject_rows)


def test_averages_draw_themselves(tmp_path: Path) -> None:
    average = trace_many(golden_lm(), FACTS[:2], **OPTIONS)
    figure = average.plot(tmp_path / "aie.png")
    assert (tmp_path / "aie.png").stat().st_size > 1000
    lines = figure.axes[1].lines
    np.testing.assert_allclose(np.asarray(lines[0].get_ydata()), next(iter(average.effects["mlp"].values())).mean)
    text = shown(average)
    assert "2 facts traced" in text
    assert "last subject token*" in text
    assert f"layer {average.peak('state').layer}" in text


def test_a_figure_shows_itself_in_a_notebook() -> None:
    shown = getattr(new_figure(2.0, 1.0), "_repr_png_")  # noqa: B009 (IPython asks for this private name)
    assert shown().startswith(b"\x89PNG")
