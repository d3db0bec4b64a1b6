"""What traces say in words and rows: the lines that a terminal shows, and tidy rows for pandas."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engram.intervals import Z95
from engram.locate.grid import HINT
from engram.showing import around, cut, short

if TYPE_CHECKING:
    from engram.locate.tracing.averages import AverageTrace
    from engram.locate.tracing.result import CausalTrace
    from engram.locate.tracing.severed import SeveredComparison

_PROMPT = 80
_NAMES = {"state": "hidden state", "mlp": "MLP outputs", "attn": "attention outputs"}


def site_name(site: str, window: int) -> str:
    """Return how a site is called in pictures."""
    return _NAMES[site] if site == "state" else f"{_NAMES[site]} ({window} layers)"


def metric_name(trace: "CausalTrace") -> str:
    """Return what the numbers stand for."""
    name = {"probability": "p", "log_probability": "log p", "logit_difference": "logit difference"}
    return f"{name[str(trace.settings['metric'])]}({cut(trace.answer.strip())})"


def trace_numbers(trace: "CausalTrace") -> str:
    """Return the metric of the clean and of the corrupted prompt."""
    return f"{metric_name(trace)}: clean {trace.clean:.3g}, corrupted {trace.corrupted:.3g} ({trace.noise})"


def trace_lines(trace: "CausalTrace") -> Iterator[str]:
    """Yield what a trace found: the numbers of the prompt, and the place of the largest effect of every site."""
    of = f" of {trace.model}" if trace.model else ""
    says = "" if trace.answer == trace.predicted else f" (but the model says {short(trace.predicted)})"
    yield f"CausalTrace{of}: {short(trace.prompt, _PROMPT)} → {short(trace.answer)}{says}"
    yield f"  {trace_numbers(trace)}, total effect {trace.total_effect:.3g}"
    for site in trace.samples:
        effect = trace.effect(site)
        row, layer = divmod(int(effect.argmax()), effect.shape[1])
        name = site_name(site, int(trace.settings["window"]))
        star = "*" if row in trace.subject_rows else ""
        yield f"  {name}: most at {cut(trace.labels[row])}{star}, layer {layer}: {float(effect[row, layer]):+.3g}"
    yield HINT


def trace_rows(trace: "CausalTrace") -> Iterator[dict[str, object]]:
    """Yield one row per site, token and layer; intervals are those of the mean over the noise samples (95 %)."""
    for site, scores in trace.scores.items():
        effect = trace.effect(site)
        error = effect.standard_error
        for row, position in enumerate(trace.positions):
            for layer in range(scores.shape[1]):
                value = float(effect[row, layer])
                yield {
                    "site": site,
                    "token": trace.tokens[position],
                    "position": position,
                    "subject": row in trace.subject_rows,
                    "layer": layer,
                    "score": float(scores[row, layer]),
                    "effect": value,
                    **around(value, Z95 * float(error[row, layer])),
                }


def average_head(average: "AverageTrace") -> Iterator[str]:
    """Yield what a terminal shows above averages."""
    total, failed = average.total, f", {len(average.failed)} failed" if average.failed else ""
    yield f"{average.count} facts traced, {average.dropped} dropped that {average.model} does not know{failed}"
    yield (
        f"clean {average.clean.mean:.3g}, corrupted {average.corrupted.mean:.3g}, "
        f"average total effect {total.mean:.3g} ± {total.half_width:.2g} (95 %)"
    )


def average_lines(average: "AverageTrace") -> Iterator[str]:
    """Yield how many facts were averaged, and the place of the largest effect of every site."""
    failed = f", {len(average.failed)} failed" if average.failed else ""
    yield f"AverageTrace of {average.model}: {average.count} facts, {average.dropped} unknown to the model{failed}"
    total = average.total
    yield (
        f"  clean {average.clean.mean:.3g}, corrupted {average.corrupted.mean:.3g}, "
        f"average total effect {total.mean:.3g}{_within(total.half_width)}"
    )
    for site in average.effects:
        peak = average.peak(site)
        yield (
            f"  {site_name(site, average.window)}: most at the {peak.group}, layer {peak.layer}: "
            f"{peak.effect:+.3g}{_within(peak.half_width)}"
        )
    yield HINT


def average_rows(average: "AverageTrace") -> Iterator[dict[str, object]]:
    """Yield one row per site, group of tokens and layer; intervals are those of the mean over facts (95 %)."""
    for site, groups in average.effects.items():
        for group, means in groups.items():
            for layer, (mean, half) in enumerate(zip(means.mean, means.half_width, strict=True)):
                yield {
                    "site": site,
                    "token": group,
                    "layer": layer,
                    "effect": mean,
                    **around(mean, half),
                    "facts": means.count,
                }


def severed_lines(comparison: "SeveredComparison") -> Iterator[str]:
    """Yield where the state's effect is largest, whole and with a path severed."""
    whole = comparison.whole
    yield f"SeveredComparison of {whole.model}: one state at the last subject token, {whole.count} facts"
    for name, average in (("whole", whole), ("MLP severed", comparison.mlp), ("attention severed", comparison.attn)):
        peak = average.peak("state")
        yield f"  {name}: most at layer {peak.layer}: {peak.effect:+.3g}{_within(peak.half_width)}"
    yield HINT


def severed_rows(comparison: "SeveredComparison") -> Iterator[dict[str, object]]:
    """Yield the rows of all three averages, told apart by the column `severed` ("", "mlp" or "attn")."""
    for severed, average in (("", comparison.whole), ("mlp", comparison.mlp), ("attn", comparison.attn)):
        for row in average_rows(average):
            yield {"severed": severed, **row}


def _within(half_width: float) -> str:
    """Return half an interval; nothing where a single value gives none."""
    return "" if math.isnan(half_width) else f" ± {half_width:.2g}"
