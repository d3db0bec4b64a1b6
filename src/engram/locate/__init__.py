"""Locating facts: causal tracing."""

from engram.locate.groups import GROUPS, token_groups
from engram.locate.tracing.averages import AverageTrace, LayerMeans, Mean, Peak, trace_many
from engram.locate.tracing.causal import trace
from engram.locate.tracing.noise import Noise, Swap, subject_sigma
from engram.locate.tracing.result import CausalTrace, Effect
from engram.locate.tracing.settings import SITES, TraceOptions
from engram.locate.tracing.severed import SeveredComparison, compare_severed
from engram.locate.tracing.windows import usual_window, window_bounds

__all__ = [
    "GROUPS",
    "SITES",
    "AverageTrace",
    "CausalTrace",
    "Effect",
    "LayerMeans",
    "Mean",
    "Noise",
    "Peak",
    "SeveredComparison",
    "Swap",
    "TraceOptions",
    "compare_severed",
    "subject_sigma",
    "token_groups",
    "trace",
    "trace_many",
    "usual_window",
    "window_bounds",
]
