"""`Grid`: numbers over the places of a network, what every way of locating returns."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from engram.errors import DataError, SettingError, did_you_mean
from engram.intervals import Z95
from engram.locate.groups import GROUPS
from engram.showing import Shown, around, cut, frame, html_picture, short
from engram.storage import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.console import RenderableType

    from engram.plots import Panel

FORMAT = 1
HINT = "  .plot() draws it, .dataframe() has every number"
_PICTURE = 2  # axes of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One place of a grid.

    Args:
        where: its label on every axis.
        index: its number on every axis.
        effect: what is there.
        standard_error: of the mean over samples; NaN for a single one.
    """

    where: tuple[str, ...]
    index: tuple[int, ...]
    effect: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Grid(Shown):
    """Numbers over the places of a network: (token, layer), (layer, neuron), (layer, head) ...

    A third axis in front holds parts, such as the sites of a trace; `grid["mlp"]` is one of them.

    Args:
        values: the numbers; the last axis is that of the samples (one where nothing is drawn at random).
        axes: what the other axes are.
        labels: for each of them one label per place.
        baseline: what `values` are compared with, anything that can be subtracted from them.
        settings: how the grid was made, as plain values.
        text: the prompt.
        model: name of the model.
        quantity: what the numbers are, such as "p(Seattle)".
        titles: what the parts are called in pictures.
        marked: rows of the axis "token" that are the subject.
        groups: rows of the axis "token" by group of tokens.
        words: for every place of the last two axes its words, the first of which a picture shows.
        notes: what people should know when they read it, a sentence each.
    """

    values: Float[Tensor, "*axes sample"]
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    baseline: Float[Tensor, "..."] = field(default_factory=lambda: torch.zeros(()))
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    text: str = ""
    model: str = ""
    quantity: str = ""
    titles: Mapping[str, str] = field(default_factory=dict[str, str])
    marked: tuple[int, ...] = ()
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    words: tuple[tuple[tuple[str, ...], ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(len(labels) for labels in self.labels)
        if len(self.axes) != len(shape) or tuple(self.values.shape[:-1]) != shape:
            raise SettingError(
                f"A grid over {', '.join(self.axes)} with {shape} labels needs values of these sizes and an axis of "
                f"samples; they are {tuple(self.values.shape)}."
            )

    # Numbers

    @property
    def scores(self) -> Float[Tensor, "*axes"]:
        """The numbers themselves, mean over the samples; those that are missing (NaN) do not count."""
        return self.values.nanmean(-1)

    @property
    def effect(self) -> Float[Tensor, "*axes"]:
        """Numbers minus the baseline, mean over the samples."""
        return self._differences().nanmean(-1)

    @property
    def standard_error(self) -> Float[Tensor, "*axes"]:
        """Standard error of `effect` over the samples; NaN where there is only one."""
        differences = self._differences()
        count = (~differences.isnan()).sum(-1)
        squares = (differences - differences.nanmean(-1, keepdim=True)).square().nansum(-1)
        error = (squares / (count - 1).clamp_min(1) / count.clamp_min(1)).sqrt()
        return error.masked_fill(count < 2, float("nan"))

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.values.shape[-1]

    def _differences(self) -> Tensor:
        return self.values - self.baseline

    def top(self, k: int = 10) -> tuple[Place, ...]:
        """Return the places of the largest effects, the largest first.

        Args:
            k: how many.
        """
        effect, error = self.effect, self.standard_error
        flat = effect.flatten().nan_to_num(nan=float("-inf"))
        found: list[Place] = []
        for flat_index in flat.topk(min(k, flat.numel())).indices.tolist():
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat_index), effect.shape))
            where = tuple(labels[i] for labels, i in zip(self.labels, index, strict=True))
            found.append(
                Place(where=where, index=index, effect=float(effect[index]), standard_error=float(error[index]))
            )
        return tuple(found)

    def __getitem__(self, part: str) -> "Grid":
        """Return one part: the grid of the other axes at one label of the first.

        Raises:
            SettingError: there is no such label.
        """
        if part not in self.labels[0]:
            raise SettingError(f"This grid has no {self.axes[0]} {part!r}. {did_you_mean(part, self.labels[0])}")
        at = self.labels[0].index(part)
        baseline = self.baseline.expand_as(self.values)[at] if self.baseline.ndim == self.values.ndim else self.baseline
        return replace(
            self,
            values=self.values[at],
            baseline=baseline,
            axes=self.axes[1:],
            labels=self.labels[1:],
            titles={"": self.titles.get(part, part)},
        )

    def grouped(self) -> "Grid":
        """Return the means over groups of tokens (first subject token, ..., last token), one row per group.

        A grid without an axis "token" is its own mean. What stands in cells is left out.
        """
        if "token" not in self.axes or not self.groups:
            return self
        axis, names = self.axes.index("token"), tuple(name for name in GROUPS if self.groups.get(name))
        rows = [self.values.index_select(axis, torch.tensor(self.groups[name])).mean(axis) for name in names]
        if self.baseline.ndim == self.values.ndim and self.baseline.shape[axis] > 1:
            raise SettingError("A grid whose baseline differs from token to token has no means over groups.")
        return replace(
            self,
            values=torch.stack(rows, dim=axis),
            labels=(*self.labels[:axis], names, *self.labels[axis + 1 :]),
            marked=tuple(i for i, name in enumerate(names) if "subject" in name),
            groups={name: (i,) for i, name in enumerate(names)},
            words=(),
        )

    # Pictures and words

    def plot(self, part: str | None = None, path: str | Path | None = None, *, dark: bool = False) -> "Figure":
        """Draw heat maps, and save them if a path is given.

        Args:
            part: which one; all side by side when not given, but only the first where cells hold words.
            path: a .png, .svg or .pdf file.
            dark: for a dark page.

        Raises:
            SettingError: there is no such part, the grid has more axes than a picture, or another kind of file.
        """
        from engram.plots import heat_panels

        return heat_panels(self.panels(part, compared=False), path, dark=dark)

    def __rich__(self) -> "RenderableType":
        from rich.text import Text

        from engram.plots import text_panel

        text = Text()
        for line in (self.text, *self.notes):
            text.append(f"{line}\n" if line else "")
        for panel in self.panels(compared=True):
            text.append("\n").append(text_panel(panel)).append("\n")
        return text

    def panels(self, part: str | None = None, *, compared: bool) -> list["Panel"]:
        """Return what is drawn: effects where `compared`, else the numbers from the baseline up.

        Raises:
            SettingError: there is no such part, or the grid has more axes than a picture.
        """
        if len(self.axes) <= _PICTURE:
            if part is not None:
                raise SettingError(f"This grid over {', '.join(self.axes)} has no parts; leave {part!r} out.")
            return [self._panel("", compared)]
        names = self.labels[0] if part is None else (part,)
        return [self[name]._panel(name, compared) for name in (names[:1] if self.words else names)]

    def _panel(self, kind: str, compared: bool) -> "Panel":
        from engram.plots import Panel

        many = len(self.axes)
        if not 0 < many <= _PICTURE:
            raise SettingError(f"A picture has two axes, not {', '.join(self.axes)}. Choose: grid[...].plot().")
        against, columns = bool((self.baseline != 0).any()), self.labels[-1]
        shown = (self.effect if compared else self.scores).reshape(-1, len(columns)).numpy()
        base = float(self.baseline.mean()) if against and not compared else 0.0
        title = self.titles.get("", "")
        return Panel(
            values=shown,
            rows=self.labels[0] if many > 1 else ("",),
            columns=() if all(label == str(i) for i, label in enumerate(columns)) else columns,
            marked=self.marked if self.axes[0] == "token" else (),
            title=f"{title}: indirect effect" if compared and against else title,
            kind=kind,
            low=0.0 if compared and against else min(base, float(shown.min(initial=base, where=shown == shown))),
            bar_label=self.quantity,
            across=self.axes[-1],
            words=[[cell[0] for cell in row] for row in self.words],
        )

    def _lines(self) -> Iterator[str]:
        of = f" of {self.model}" if self.model else ""
        size = " × ".join(f"{len(labels)} {axis}s" for axis, labels in zip(self.axes, self.labels, strict=True))
        yield f"Grid{of}: {short(self.text, 80)}, {size}" if self.text else f"Grid{of}: {size}"
        yield from (f"  {note}" for note in self.notes)
        most = self.top(1)[0] if self.values.numel() else None
        if most is not None and len(self.axes) <= _PICTURE:
            yield f"  most at {self._named(most)}: {most.effect:+.3g}"
        for part in self.labels[0] if len(self.axes) > _PICTURE else ():
            most = self[part].top(1)[0]
            title = self.titles.get(part, part)
            yield f"  {title}: most at {self[part]._named(most)}: {most.effect:+.3g}"
        yield HINT

    def _named(self, place: Place) -> str:
        words = (
            cut(label.strip() or repr(label)) if axis == "token" else f"{axis} {label}"
            for axis, label in zip(self.axes, place.where, strict=True)
        )
        return ", ".join(words)

    def _inside(self) -> Iterator[str]:
        if len(self.axes) <= _PICTURE + 1:
            yield html_picture(self.plot, f"Numbers of a grid over {', '.join(self.axes)}: {self.text}")

    # Files

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield one row per place: a column per axis, score, effect, its 95 % interval (low, high), words if any."""
        scores, effect, error = self.scores, self.effect, self.standard_error
        for index in product(*(range(len(labels)) for labels in self.labels)):
            value = float(effect[index])
            labels = [each[i] for each, i in zip(self.labels, index, strict=True)]
            place: dict[str, object] = dict(zip(self.axes, labels, strict=True))
            if self.words:
                place["word"] = self.words[index[-2]][index[-1]][0]
            yield {**place, "score": float(scores[index]), "effect": value, **around(value, Z95 * float(error[index]))}

    def dataframe(self) -> "DataFrame":
        """Return a table for pandas, one row per place: its axes, score, effect, low and high (95 % over samples).

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single samples as plain values, for JSON; what is missing is None."""
        numbers = {"scores": self.scores, "effect": self.effect, "standard_error": self.standard_error}
        return {**self._plain(), **{name: _listed(tensor) for name, tensor in numbers.items()}}

    def _plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model,
            "text": self.text,
            "axes": list(self.axes),
            "labels": [list(labels) for labels in self.labels],
            "quantity": self.quantity,
            "titles": dict(self.titles),
            "marked": list(self.marked),
            "groups": {name: list(rows) for name, rows in self.groups.items()},
            "words": [[list(cell) for cell in row] for row in self.words],
            "notes": list(self.notes),
            "settings": dict(self.settings),
        }

    def save(self, folder: str | Path) -> Path:
        """Write grid.json and grid.safetensors into a folder, which is made; return the folder."""
        where = Path(folder)
        tensors = save({"values": self.values.contiguous(), "baseline": self.baseline.contiguous()})
        text = json.dumps(self._plain(), ensure_ascii=False) + "\n"
        write_files(where, {"grid.safetensors": tensors, "grid.json": text})
        return where

    @classmethod
    def load(cls, folder: str | Path) -> "Grid":
        """Read what `save` wrote.

        Raises:
            DataError: the folder holds no grid, or a broken one.
        """
        where = Path(folder)
        try:
            plain = cast("dict[str, Any]", json.loads((where / "grid.json").read_text(encoding="utf-8")))
            tensors = load_file(where / "grid.safetensors")
            if plain.pop("format") != FORMAT:
                raise DataError(f"The grid in {where} was written by a newer version. Update Engram to read it.")
            for name in ("axes", "marked", "notes"):
                plain[name] = tuple(plain[name])
            plain["labels"] = tuple(tuple(labels) for labels in plain["labels"])
            plain["groups"] = {name: tuple(rows) for name, rows in plain["groups"].items()}
            plain["words"] = tuple(tuple(tuple(cell) for cell in row) for row in plain["words"])
            return cls(**plain, values=tensors["values"], baseline=tensors["baseline"])
        except FileNotFoundError as error:
            raise DataError(f"{where} holds no grid: {Path(error.filename or where).name} is not there.") from error
        except (KeyError, TypeError, ValueError, SettingError, safetensors.SafetensorError) as error:
            raise DataError(f"The grid in {where} is broken: {error}") from error


def _listed(tensor: Tensor) -> Any:
    """Return a tensor as lists; JSON knows no NaN."""
    if tensor.ndim == 0:
        return None if bool(tensor.isnan()) else float(f"{float(tensor):.7g}")
    return [_listed(part) for part in tensor]
