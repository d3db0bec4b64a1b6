"""Where to edit: layers x token positions x methods, each evaluated, and what a trace says beside it."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engram.editing.methods import method_kind
from engram.editing.parts.prompts import TOKENS
from engram.editing.parts.value_editor import ValueEditor
from engram.errors import SettingError, did_you_mean
from engram.evaluation import tables
from engram.evaluation.editors import method_of
from engram.evaluation.evaluate import Data, dataset_of, evaluate
from engram.evaluation.report import Cell, Run
from engram.evaluation.verdicts import COLUMNS
from engram.given import require_each, require_lm
from engram.locate import AverageTrace
from engram.progress import Doing, Progress, named, progress_for
from engram.settings import settings as settings_of
from engram.showing import Shown, frame
from engram.storage import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from engram.models import LM

logger = logging.getLogger(__name__)

SUBJECT_LAST = "subject_last"
PANELS = {"ES": "Efficacy", "PS": "Generalisation", "NS": "Specificity"}
_EARLY_SITE = "last subject token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One way to edit.

    Args:
        method: the method's name.
        layer: the layer.
        token: the token that is written at; empty for methods that have no such setting.
    """

    method: str
    layer: int
    token: str = ""

    @property
    def name(self) -> str:
        """Name of its run folder, in an order that sorts."""
        return "-".join(part for part in (self.method, f"layer{self.layer:02d}", self.token) if part)

    @property
    def series(self) -> str:
        """What it belongs to in a figure."""
        return f"{self.method}, {self.token.replace('_', ' ')}" if self.token else self.method


@dataclass(frozen=True, repr=False)
class Sweep(Shown):
    """Evaluations of many places.

    Args:
        model: the model's name.
        n_layers: its number of layers.
        runs: the run of each place.
        notes: where numbers come from that were not given.
    """

    model: str
    n_layers: int
    runs: Mapping[Place, Run]
    notes: tuple[str, ...] = ()

    def cells(self, key: str) -> dict[Place, Cell]:
        """Return one column's number for every place that has it.

        Raises:
            SettingError: there is no such column.
        """
        return {place: cell for place, run in self.runs.items() if (cell := run.cell(key)) is not None}

    def best(self, key: str = "S", *, method: str | None = None) -> Place:
        """Return the place with the highest number of a column, the lower layer among equals.

        Raises:
            SettingError: no place has that column.
        """
        cells = {p: c for p, c in self.cells(key).items() if method in (None, p.method)}
        if not cells:
            raise SettingError(f"No place of this sweep has {key!r}: do the cases have paraphrases and neighborhoods?")
        return max(cells, key=lambda place: (cells[place].value, -place.layer))

    def plain(self) -> list[dict[str, Any]]:
        """Return one row per place for JSON."""
        return [
            {
                **asdict(place),
                "cases": len(run.scored),
                "failed": len(run.failed),
                **{key: asdict(cell) for key in run.columns if (cell := run.cell(key)) is not None},
            }
            for place, run in self.runs.items()
        ]

    def dataframe(self) -> "DataFrame":
        """Return a table for pandas, one row per place and column.

        Columns: method, layer, token, column (its key), value, its 95 % interval (low, high), n.

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(tables.sweep_rows(self))

    def _lines(self) -> Iterable[str]:
        return tables.sweep_lines(self)

    def _inside(self) -> Iterable[str]:
        return tables.sweep_html(self)

    def plot(self, path: str | Path | None = None, *, dark: bool = False) -> "Figure":
        """Draw efficacy, generalisation and specificity by layer, one line per method and token; save if asked."""
        from engram.plots import Line, finish, line_plot, new_figure

        figure = new_figure(11.0, 3.4)
        series = list(dict.fromkeys(place.series for place in self.runs))
        panels = figure.subplots(1, len(PANELS))
        for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
            cells = self.cells(key)
            lines: list[Line] = []
            for name in series:
                values, half = np.full(self.n_layers, np.nan), np.full(self.n_layers, np.nan)
                for place, cell in cells.items():
                    if place.series == name:
                        values[place.layer], half[place.layer] = cell.value, cell.half_width
                lines.append(Line(label=name, values=values, half_width=half))
            line_plot(axes, lines, title=title, y_label=f"{key} (%)")
            axes.set_ylim(0, 105)
        panels[-1].legend(fontsize="x-small", frameon=False)
        return finish(figure, path, dark=dark)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Advice(Shown):
    """A recommended layer.

    Args:
        layer: the layer.
        score: S there, in percent.
        reasons: why, in sentences.
    """

    layer: int
    score: float
    reasons: tuple[str, ...]

    def _lines(self) -> Iterable[str]:
        yield f"Advice: layer {self.layer} (S {self.score:.1f})"
        yield from (f"  {reason}" for reason in self.reasons)


def sweep(
    lm: "LM",
    data: Data,
    *,
    methods: Sequence[str] = ("rome",),
    layers: Sequence[int] | None = None,
    tokens: Sequence[str] = (SUBJECT_LAST,),
    out: str | Path | None = None,
    progress: Progress | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Sweep:
    """Evaluate editing at every layer and token position.

    Args:
        lm: the model.
        data: what `evaluate` takes.
        methods: names of methods.
        layers: layers to try; all when not given.
        tokens: token positions to try, for methods that have a choice: subject_first, subject_middle, subject_last,
            last.
        out: a folder that gets one run folder per place; an interrupted sweep goes on where it was.
        progress: told what is being done, how much of it is done, and how much there is: keys counted, places tried,
            cases at a place. The log when not given.
        settings: further settings by method name.
        **options: what else `evaluate` takes, such as batch, generate or engine.

    Raises:
        SettingError: an unknown method or token, or a layer that the model does not have.
    """
    require_lm(lm)
    methods, tokens = _several(methods), _several(tokens)
    dataset, tell = dataset_of(data), progress_for(progress)
    chosen = list(range(lm.n_layers)) if layers is None else sorted(set(require_each(layers, int, "layers")))
    places = list(_places(lm, methods, chosen, tokens))
    extra = {name: dict((settings or {}).get(name, {})) for name in methods}
    for name in methods:
        _count_keys_once(lm, chosen, name, extra[name], tell)
    runs: dict[Place, Run] = {}
    notes: dict[str, None] = {}
    for done, place in enumerate(places):
        tell(Doing("sweeping", unit="places"), done, len(places))
        token = {"token": place.token} if place.token else {}
        method = method_of(place.method, {**extra[place.method], "layer": place.layer, **token})
        folder = None if out is None else Path(out) / place.name
        how: dict[str, Any] = {"generate": False, **options}
        cases = Doing(place.name, unit="cases")
        report = evaluate(lm, dataset, method=method, out=folder, progress=named(tell, cases), **how)
        runs[place] = report.runs[-1]
        notes |= dict.fromkeys(report.notes)
    tell(Doing("sweeping", unit="places"), len(places), len(places))
    return Sweep(lm.name, lm.n_layers, runs, tuple(notes))


def _several(names: Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _places(lm: "LM", methods: Sequence[str], layers: Sequence[int], tokens: Sequence[str]) -> Sequence[Place]:
    for layer in layers:
        if not 0 <= layer < lm.n_layers:
            raise SettingError(
                f"There is no layer {layer}: {lm.name} has {lm.n_layers}, counted 0 to {lm.n_layers - 1}."
            )
    for token in tokens:
        if token not in TOKENS:
            raise SettingError(f"There is no token {token!r}. {did_you_mean(token, TOKENS)}")
    places: list[Place] = []
    for method in methods:
        named = settings_of(method_kind(method))
        if "layer" not in named:
            raise SettingError(f"{method!r} has no setting 'layer', so there is nothing to sweep over.")
        for token in tokens if "token" in named else ("",):
            places += [Place(method=method, layer=layer, token=token) for layer in layers]
    return places


def _count_keys_once(
    lm: "LM", layers: Sequence[int], method: str, settings: dict[str, Any], progress: Progress
) -> None:
    """Count the keys of all layers in one pass instead of one pass per layer, where a method needs them."""
    made = method_of(method, settings)
    if isinstance(made, ValueEditor):
        settings["covariance"] = made.counted(lm, layers=layers, progress=progress).covariance
        settings.pop("corpus", None)
        settings.pop("tokens", None)


def advise(swept: Sweep, trace: AverageTrace | None = None, *, method: str = "rome") -> Advice:
    """Recommend a layer to edit, from a sweep; what an average trace says is told beside it.

    The sweep decides, because it measures what edits do: the layer with the largest traced effect need not be the best
    one to edit (docs/reading-a-trace.md). Layers whose S is within the best one's 95 % interval are as good as it;
    among them the one is taken that leaves most of the other facts of the subject, or of the neighborhood where there
    are none.

    Args:
        swept: a sweep at the subject's last token.
        trace: causal traces of the same model, averaged.
        method: whose layers.

    Raises:
        SettingError: the sweep has no S for that method.
    """
    best = swept.best("S", method=method)
    places = {p.layer: p for p in swept.cells("S") if (p.method, p.token) == (best.method, best.token)}
    cells = {layer: swept.cells("S")[place] for layer, place in places.items()}
    top = cells[best.layer]
    margin = 0.0 if np.isnan(top.half_width) else top.half_width
    equal = sorted(layer for layer, cell in cells.items() if cell.value >= top.value - margin)
    reasons = [
        f"Layer {best.layer} has the highest S of {len(cells)} layers: {top} over {top.n} cases ({best.series})."
    ]
    layer = best.layer
    if len(equal) > 1:
        reasons.append(f"Layers {', '.join(map(str, equal))} are within its interval, so S cannot part them.")
        for key in ("kept", "unchanged"):
            left = {at: cell for at in equal if (cell := swept.runs[places[at]].cell(key)) is not None}
            if len(left) == len(equal):
                layer = max(equal, key=lambda at: (left[at].value, cells[at].value, -at))
                reasons.append(f"Of these, layer {layer} leaves most as it was ({COLUMNS[key].label} {left[layer]}).")
                break
    reasons.append(_traced(trace, layer))
    return Advice(layer=layer, score=cells[layer].value, reasons=tuple(reasons))


def _traced(trace: AverageTrace | None, layer: int) -> str:
    """Say what a trace shows, which decides nothing."""
    if trace is None:
        return "No trace was given; the sweep alone decides."
    site = "mlp" if "mlp" in trace.effects else next(iter(trace.effects))
    effects = trace.effects[site].get(_EARLY_SITE)
    if effects is None:
        return f"The trace has no effects at the {_EARLY_SITE}; the sweep alone decides."
    peak = int(np.argmax(effects.mean))
    verdict = (
        "the same layer" if peak == layer else "another layer: where a fact is recalled is not always best to edit"
    )
    return (
        f"Traced over {trace.count} facts, the {site} effect at the {_EARLY_SITE} peaks at layer {peak} "
        f"({effects.mean[peak]:.3f}), {verdict}. The sweep decides."
    )


def write_sweep(swept: Sweep, folder: Path) -> None:
    """Keep a sweep's table and figure in its folder."""
    text = json.dumps({"model": swept.model, "layers": swept.n_layers, "places": swept.plain()}, indent=2)
    write_file(folder / "sweep.json", text + "\n")
    swept.plot(folder / "sweep.png")
