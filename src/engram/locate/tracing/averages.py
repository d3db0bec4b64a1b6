"""`trace_many`: effects averaged over facts that a model knows (AIE, ATE: ROME paper, section 2.1)."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from engram.errors import DataError
from engram.facts import Case, Fact
from engram.given import require_each, require_lm
from engram.intervals import Z95, mean_interval
from engram.locate.groups import GROUPS, token_groups
from engram.locate.many import over_facts
from engram.locate.tracing.result import CausalTrace
from engram.locate.tracing.settings import TraceOptions, TraceSettings
from engram.locate.tracing.words import average_head, average_lines, average_rows, site_name
from engram.locate.tracing.work import TRACING, trace_with
from engram.models.chat import wrap_for
from engram.progress import AnyProgress, Doing, named, progress_for
from engram.runs.store import Record, read_records, read_run
from engram.showing import Shown, frame, html_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.console import RenderableType

    from engram.models import LM
    from engram.plots import Panel

logger = logging.getLogger(__name__)

FACTS = Doing("tracing facts", unit="facts")


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with half of its 95 % confidence interval (normal approximation; NaN for a single value)."""

    mean: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Average numbers."""
        return cls(*(mean_interval(values) if values else (math.nan, math.nan)), len(values))


@dataclass(frozen=True, slots=True)
class LayerMeans:
    """Means per layer, with half of their 95 % confidence intervals, over `count` facts."""

    mean: tuple[float, ...]
    half_width: tuple[float, ...]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Where an average effect is largest."""

    group: str
    layer: int
    effect: float
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AverageTrace(Shown):
    """Causal traces averaged over facts.

    Args:
        model: name of the model.
        count: number of facts averaged.
        dropped: number of facts left out because the model does not know them.
        failed: prompts that could not be traced, with the reason.
        clean: metric of the clean prompts.
        corrupted: metric of the corrupted prompts.
        total: ATE, clean - corrupted.
        effects: AIE: site → token group → means per layer. Within a fact the tokens of a group are averaged first.
        window: layers of a window.
        settings: how the traces were made.
    """

    model: str
    count: int
    dropped: int
    failed: tuple[tuple[str, str], ...]
    clean: Mean
    corrupted: Mean
    total: Mean
    effects: dict[str, dict[str, LayerMeans]]
    window: int
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def peak(self, site: str = "state") -> Peak:
        """Return the group and layer with the largest average effect of a site."""
        best = max(
            ((group, layer) for group, means in self.effects[site].items() for layer in range(len(means.mean))),
            key=lambda place: self.effects[site][place[0]].mean[place[1]],
        )
        means = self.effects[site][best[0]]
        return Peak(group=best[0], layer=best[1], effect=means.mean[best[1]], half_width=means.half_width[best[1]])

    def plot(self, path: str | Path | None = None, *, dark: bool = False) -> "Figure":
        """Draw the effects over layers, one plot per site and one line per token group, and save if a path is given.

        Args:
            path: a .png, .svg or .pdf file.
            dark: for a dark page.
        """
        from engram.plots import line_panels

        title, label = f"{self.count} facts, {self.model}", "average indirect effect"
        return line_panels(self._panels("restoring {}"), path, title=title, y_label=label, dark=dark)

    def __rich__(self) -> "RenderableType":
        from rich.text import Text

        from engram.plots import text_panel

        text = Text("\n".join(average_head(self)) + "\n")
        for site, panel in zip(self.effects, self._panels("{}: average indirect effect"), strict=True):
            peak = self.peak(site)
            text.append("\n").append(text_panel(panel))
            text.append(f"\npeak {peak.effect:.3g} ± {peak.half_width:.2g} at the {peak.group}, layer {peak.layer}\n")
        return text

    def _panels(self, title: str) -> list["Panel"]:
        from engram.plots import Panel

        return [
            Panel(
                values=np.array([means.mean for means in groups.values()]),
                half_width=np.array([means.half_width for means in groups.values()]),
                rows=list(groups),
                marked=[i for i, group in enumerate(groups) if "subject" in group],
                title=title.format(site_name(site, self.window)),
                kind=site,
            )
            for site, groups in self.effects.items()
        ]

    def _lines(self) -> Iterable[str]:
        return average_lines(self)

    def _inside(self) -> Iterable[str]:
        yield html_picture(self.plot, f"Effects averaged over {self.count} facts, by layer and group of tokens")

    def dataframe(self) -> "DataFrame":
        """Return a table for pandas, one row per site, group of tokens and layer.

        Columns: site, token (the group), layer, effect, its 95 % interval over facts (low, high), facts.

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(average_rows(self))

    def record(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""

        def plain(mean: Mean) -> dict[str, Any]:
            return {"mean": _plain(mean.mean), "half_width": _plain(mean.half_width), "count": mean.count}

        return {
            "model": self.model,
            "count": self.count,
            "dropped": self.dropped,
            "failed": [list(item) for item in self.failed],
            "clean": plain(self.clean),
            "corrupted": plain(self.corrupted),
            "average_total_effect": plain(self.total),
            "average_indirect_effects": {
                site: {
                    group: {
                        "mean": [_plain(v) for v in means.mean],
                        "half_width": [_plain(v) for v in means.half_width],
                        "count": means.count,
                    }
                    for group, means in groups.items()
                }
                for site, groups in self.effects.items()
            },
            "settings": self.settings,
        }

    @classmethod
    def load(cls, folder: str | Path) -> "AverageTrace":
        """Average whatever a run folder of `trace_many` holds, finished or not.

        Raises:
            RunError: it is no run folder.
            DataError: no fact was traced in it.
        """
        run = read_run(Path(folder))
        return cls.of(read_records(Path(folder)), run["settings"], model=str(run["circumstances"].get("model", "")))

    @classmethod
    def of(cls, records: Iterable[Record], settings: dict[str, Any], *, model: str) -> "AverageTrace":
        """Average records of single facts.

        Raises:
            DataError: none of them was traced.
        """
        every = list(records)
        traced = [r for r in every if r["status"] == "traced"]
        dropped = sum(r["status"] == "unknown" for r in every)
        if not traced:
            raise DataError(
                f"None of {len(every)} fact(s) could be averaged; {model or 'the model'} does not know {dropped}. "
                f"Give facts that it answers rightly."
            )
        return cls(
            model=model,
            count=len(traced),
            dropped=dropped,
            failed=tuple((str(r["prompt"]), str(r["reason"])) for r in every if r["status"] == "failed"),
            clean=Mean.of([r["clean"] for r in traced]),
            corrupted=Mean.of([r["corrupted"] for r in traced]),
            total=Mean.of([r["clean"] - r["corrupted"] for r in traced]),
            effects={site: _over_groups(traced, site) for site in traced[0]["scores"]},
            window=int(settings["window"]),
            settings=settings,
        )


def trace_many(
    lm: "LM",
    facts: Iterable[Fact | Case],
    *,
    out: str | Path | None = None,
    progress: AnyProgress | None = None,
    **options: Unpack[TraceOptions],
) -> AverageTrace:
    """Trace facts and average their effects.

    A fact that names an `original` counts only if the model gives its first token; one that does not is taken as what
    the model says. With `out`, every fact is on the disk when it is done: the same call continues a run that was
    interrupted, and a call with more facts adds them.

    Args:
        lm: the model.
        facts: facts or cases.
        out: the run's folder (`run.json`, `results.jsonl`); nothing is written when not given.
        progress: a function of (what, done, total), or of (done, total) facts; the log when not given.
        **options: as for `trace`.

    Raises:
        SettingError: an option has a value that is not allowed.
        RunError: the folder belongs to other settings or another model, or is in use.
        DataError: the model knows none of the facts.
        TokenizerError: `chat` on a model without a chat template.
        NumericalError: NaN or infinity in the model's output.
    """
    require_lm(lm)
    given = require_each(facts, (Fact, Case), "facts")
    tell = progress_for(progress, FACTS)
    settings = TraceSettings.of(**options).fitted(lm.n_layers)
    settings.check_window(lm.n_layers)

    def one(fact: Fact) -> Record:
        return _kept(trace_with(lm, fact, settings, progress=named(tell, TRACING)))

    worded = wrap_for(lm, chat=settings.chat).fact
    records = over_facts(
        lm, given, one, settings.record(), out=out, tell=tell, doing=FACTS, done="traced", worded=worded
    )
    average = AverageTrace.of(records, {**settings.record(), "model": lm.fingerprint}, model=lm.name)
    logger.info("%d facts traced, %d dropped that %s does not know", average.count, average.dropped, lm.name)
    return average


def _kept(trace: CausalTrace) -> Record:
    return {
        "answer": trace.answer,
        "tokens": list(trace.tokens),
        "positions": list(trace.positions),
        "subject_range": list(trace.subject_range),
        "clean": trace.clean,
        "corrupted": trace.corrupted,
        "scores": {
            site: [[float(f"{value:.7g}") for value in row] for row in scores.tolist()]
            for site, scores in trace.scores.items()
        },
    }


def _over_groups(records: Sequence[Record], site: str) -> dict[str, LayerMeans]:
    """Average over facts the mean effect of each fact's tokens of a group."""
    found: dict[str, list[np.ndarray]] = {}
    for record in records:
        begin, end = record["subject_range"]
        row = {position: i for i, position in enumerate(record["positions"])}
        effect = np.array(record["scores"][site]) - record["corrupted"]
        for group, tokens in token_groups((begin, end), len(record["tokens"])).items():
            rows = [row[t] for t in tokens if t in row]
            if rows:
                found.setdefault(group, []).append(effect[rows].mean(0))
    means: dict[str, LayerMeans] = {}
    for group in GROUPS:
        if group in found:
            values = np.stack(found[group])
            many = len(values)
            spread = values.std(0, ddof=1) if many > 1 else np.full(values.shape[1], math.nan)
            means[group] = LayerMeans(tuple(values.mean(0).tolist()), tuple((Z95 * spread / many**0.5).tolist()), many)
    return means


def _plain(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
