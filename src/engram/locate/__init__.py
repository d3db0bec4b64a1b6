"""Locating facts: causal tracing."""

from engram.locate.noise import Noise, Swap, subject_sigma
from engram.locate.result import CausalTrace, Effect
from engram.locate.settings import TraceOptions
from engram.locate.tracing import trace
from engram.locate.windows import window_bounds

__all__ = [
    "CausalTrace",
    "Effect",
    "Noise",
    "Swap",
    "TraceOptions",
    "subject_sigma",
    "trace",
    "window_bounds",
]
