"""What carries an early state's effect: traces with the MLPs, or the attention, severed (ROME paper, figure 3)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from engram.errors import SettingError
from engram.facts import Case, Fact
from engram.given import require_each
from engram.locate.tracing.averages import FACTS, AverageTrace, trace_many
from engram.locate.tracing.settings import TraceOptions
from engram.locate.tracing.words import severed_lines, severed_rows
from engram.progress import AnyProgress, Doing, progress_for
from engram.showing import Shown, frame, html_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from engram.models import LM

TRACES = Doing("tracing facts", unit="traces")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SeveredComparison(Shown):
    """Average effects of one restored state at the last subject token, whole and severed.

    Args:
        whole: nothing severed.
        mlp: the MLP outputs at that token stay corrupted in all layers.
        attn: the attention outputs do.
    """

    whole: AverageTrace
    mlp: AverageTrace
    attn: AverageTrace

    def plot(self, path: str | Path | None = None, *, dark: bool = False) -> "Figure":
        """Draw the three as bars over layers, and save if a path is given; `dark` for a dark page."""
        from engram.plots import COLORS, Bar, bar_chart, finish, new_figure

        bars: list[Bar] = []
        for label, average, site in self._parts():
            mean = average.effects["state"]["last subject token"]
            values, half = np.array(mean.mean), np.array(mean.half_width)
            bars.append(Bar(label=label, values=values, half_width=half, color=COLORS[site]))
        figure = new_figure(8.0, 3.2)
        title = f"one state at the last subject token, {self.whole.count} facts"
        bar_chart(figure.add_subplot(), bars, title=title, y_label="average indirect effect")
        return finish(figure, path, dark=dark)

    def _parts(self) -> tuple[tuple[str, AverageTrace, str], ...]:
        return (
            ("state restored", self.whole, "state"),
            ("MLP severed", self.mlp, "mlp"),
            ("attention severed", self.attn, "attn"),
        )

    def _lines(self) -> Iterable[str]:
        return severed_lines(self)

    def _inside(self) -> Iterable[str]:
        yield html_picture(self.plot, "Effects of one state by layer, whole and with a path severed")

    def dataframe(self) -> "DataFrame":
        """Return a table for pandas: the rows of `AverageTrace.dataframe` with a column severed ("", "mlp", "attn").

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(severed_rows(self))

    def record(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {"whole": self.whole.record(), "mlp": self.mlp.record(), "attn": self.attn.record()}


def compare_severed(
    lm: "LM",
    facts: Iterable[Fact | Case],
    *,
    out: str | Path | None = None,
    progress: AnyProgress | None = None,
    **options: Unpack[TraceOptions],
) -> SeveredComparison:
    """Trace the states of the last subject token three times: whole, MLPs severed, attention severed.

    Args:
        lm: the model.
        facts: facts or cases.
        out: folder for the three runs (`whole`, `mlp`, `attn`), which continue like those of `trace_many`.
        progress: a function of (what, done, total), or of (done, total) traces; the log when not given.
        **options: as for `trace`, but for sites, tokens and severed, which are given.

    Raises:
        SettingError: sites, tokens or severed were given; and as `trace_many`.
    """
    given = sorted({"sites", "tokens", "severed"} & set(options))
    if given:
        raise SettingError(f"compare_severed decides {', '.join(given)} itself; leave it out.")
    every, tell = require_each(facts, (Fact, Case), "facts"), progress_for(progress, TRACES)

    def part(index: int, name: str, **severed: Unpack[TraceOptions]) -> AverageTrace:
        def report(what: str, done: int, total: int) -> None:
            if what == FACTS:
                tell(TRACES, index * total + done, 3 * total)
            else:
                tell(what, done, total)

        folder = None if out is None else Path(out) / name
        fixed: TraceOptions = {**options, "sites": "state", "tokens": "subject_last", **severed}
        return trace_many(lm, every, out=folder, progress=report, **fixed)

    return SeveredComparison(
        whole=part(0, "whole"), mlp=part(1, "mlp", severed="mlp"), attn=part(2, "attn", severed="attn")
    )
