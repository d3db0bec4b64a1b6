"""Grids: numbers, parts, means over groups and facts, words, files, pictures."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import golden_lm

import engram
from engram.errors import DataError, RunError, SettingError
from engram.facts import Fact
from engram.locate import Grid, averaged, locate, locate_many, locator_named, trace, trace_many
from engram.locate.lens import Lens

FACT = Fact("Michael Morfa", "Today {} took lessons in")
OTHER = Fact("Holzu", "Today {} took lessons in")
OPTIONS: dict[str, Any] = {"noise": 0.25, "samples": 2, "window": 3}


def grid(**changes: Any) -> Grid:
    values = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 9.0], [0.0, 0.0]], [[-1.0, -1.0], [4.0, 4.0]]])
    given: dict[str, Any] = {"axes": ("token", "layer"), "labels": (("The", " Needle", "is"), ("0", "1")), **changes}
    return Grid(**{"values": values, "baseline": torch.tensor([1.0, 1.0]), **given})


def test_effects_standard_errors_and_the_largest_places() -> None:
    found = grid()
    assert found.samples == 2
    assert found.scores[0].tolist() == [2.0, 2.0]
    assert found.effect.tolist() == [[1.0, 1.0], [6.0, -1.0], [-2.0, 3.0]]
    torch.testing.assert_close(found.standard_error, found.values.std(-1) / 2**0.5)
    first, second = found.top(2)
    assert (first.where, first.index, first.effect, first.standard_error) == ((" Needle", "0"), (1, 0), 6.0, 2.0)
    assert second.where == ("is", "1")
    assert grid(values=found.values[..., :1], baseline=torch.zeros(())).standard_error.isnan().all()


def test_labels_must_fit_the_values() -> None:
    with pytest.raises(SettingError, match="needs values of these sizes"):
        grid(labels=(("The", "is"), ("0", "1")))


def test_means_over_groups_of_tokens() -> None:
    groups = {"first subject token": (0,), "last subject token": (1, 2), "further tokens": ()}
    found = grid(groups=groups, marked=(0,)).grouped()
    assert found.labels[0] == ("first subject token", "last subject token")
    assert found.scores.tolist() == [[2.0, 2.0], [3.0, 2.0]]
    assert found.marked == (0, 1)
    assert grid().grouped().labels[0] == ("The", " Needle", "is")


def test_facts_are_the_samples_of_an_average() -> None:
    one = grid(groups={"last subject token": (0,), "last token": (2,)})
    two = grid(groups={"middle subject tokens": (1,), "last subject token": (0,), "last token": (2,)})
    both = averaged([one, two], ["two facts"])
    assert both.labels[0] == ("middle subject tokens", "last subject token", "last token")
    assert both.samples == 2
    assert both.effect.tolist() == [[6.0, -1.0], [1.0, 1.0], [-2.0, 3.0]]
    assert both.standard_error[0].isnan().all()  # one fact has such tokens
    assert both.standard_error[1].tolist() == [0.0, 0.0]
    with pytest.raises(SettingError, match="differ in their axes or labels"):
        averaged([one, grid(labels=(("a", "b", "c"), ("7", "8")), groups=one.groups)])


def test_other_axes_are_drawn_and_written_too(tmp_path: Path) -> None:
    neurons = Grid(
        values=torch.rand(3, 40, 1), axes=("layer", "neuron"), labels=(tuple("012"), tuple(map(str, range(40))))
    )
    heads = Grid(values=torch.rand(3, 4, 1), axes=("layer", "head"), labels=(tuple("012"), tuple("0123")))
    layers = Grid(values=torch.rand(3, 1), axes=("layer",), labels=(tuple("012"),))
    for each in (neurons, heads, layers):
        each.plot(path=tmp_path / "grid.png")
        assert (tmp_path / "grid.png").stat().st_size > 1000
        assert each.axes[-1] in str(each.__rich__())
        assert len(each.dataframe()) == each.effect.numel()
    assert "layer" in repr(heads)
    assert "head" in repr(heads)
    with pytest.raises(SettingError, match="no parts"):
        heads.plot("mlp")


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    found = grid(
        words=((("a", "b"), ("c", "d")),) * 3, groups={"last token": (2,)}, notes=("so",), text="The Needle is"
    )
    loaded = Grid.load(found.save(tmp_path / "g"))
    assert loaded.to_dict() == found.to_dict()
    assert torch.equal(loaded.values, found.values)
    assert torch.equal(loaded.baseline, found.baseline)
    json.dumps(found.to_dict(), allow_nan=False)
    (tmp_path / "g" / "grid.json").write_text("{")
    with pytest.raises(DataError, match="is broken"):
        Grid.load(tmp_path / "g")
    with pytest.raises(DataError, match="holds no grid"):
        Grid.load(tmp_path)


def test_it_shows_itself_as_text_and_never_as_markup() -> None:
    shown = grid(text="<b>x</b>", words=((("<i>",), ("b",)),) * 3)
    html = shown._repr_html_()
    assert html is not None
    assert "<i>" not in html
    assert "&lt;b&gt;" in html
    assert "3 tokens × 2 layers" in repr(shown)
    assert "<i>" in str(shown.__rich__())


def test_tracing_is_the_grid_of_trace_and_the_module_is_the_verb() -> None:
    lm = golden_lm()
    found, wanted = locate(lm, FACT, by="tracing", **OPTIONS), trace(lm, FACT, **OPTIONS)
    assert found.axes == ("site", "token", "layer")
    for site in wanted.samples:
        torch.testing.assert_close(found[site].effect, wanted.effect(site).clone(), atol=1e-5, rtol=0)
        assert found[site].labels[0] == tuple(wanted.labels)
    assert engram.locate(lm, FACT, **OPTIONS).to_dict() == found.to_dict()  # pyright: ignore[reportCallIssue]
    assert engram.locate.CausalTrace is type(wanted)
    with pytest.raises(SettingError, match="There is no locator 'tracin'. Did you mean 'tracing'"):
        locate(lm, FACT, by="tracin")
    with pytest.raises(SettingError, match="no setting 'sample'. Did you mean 'samples'"):
        locate(lm, FACT, sample=3)
    with pytest.raises(SettingError, match=r"give Lens\(\)"):
        locate(lm, FACT, by=Lens)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"Give top to the locator itself: Lens"):
        locate(lm, FACT, by=Lens(), top=3)
    assert locator_named("lens", top=3) == Lens(top=3)


def test_many_facts_are_averaged_as_trace_many_does_and_go_on(tmp_path: Path) -> None:
    lm = golden_lm()
    found = locate_many(lm, [FACT, OTHER], out=tmp_path / "run", sites="state", **OPTIONS)
    wanted = trace_many(lm, [FACT, OTHER], sites="state", **OPTIONS)
    for row, group in enumerate(found.labels[1]):
        means = wanted.effects["state"][group].mean
        assert found["state"].effect[row].tolist() == pytest.approx(means, abs=1e-5)
        half = wanted.effects["state"][group].half_width[0]
        error = 1.959964 * float(found["state"].standard_error[row, 0])
        assert (math.isnan(half) and math.isnan(error)) or error == pytest.approx(half, abs=1e-5)
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    again = locate_many(lm, [FACT, OTHER], out=tmp_path / "run", sites="state", **OPTIONS)
    assert (tmp_path / "run" / "results.jsonl").read_text().splitlines() == lines
    assert again.to_dict() == found.to_dict()
    with pytest.raises(RunError, match="window was 3"):
        locate_many(lm, [FACT], out=tmp_path / "run", sites="state", **{**OPTIONS, "window": 1})
    unknown = Fact("Holzu", "Today {} took lessons in", original="Zzyx")
    with pytest.raises(DataError, match="does not know 1"):
        locate_many(lm, [unknown], by="lens")
