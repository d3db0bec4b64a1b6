"""Locating facts: one verb for every way, `engram.locate(lm, fact, by="lens")`, and what the ways share.

The module itself is the verb: it can be called, and its names are `engram.locate.Grid`, `engram.locate.trace` ...
"""

import sys
from types import ModuleType
from typing import Any

from engram.locate.grid import Grid, Place
from engram.locate.groups import GROUPS, token_groups
from engram.locate.locator import LOCATORS, Locator, locate, locator_named
from engram.locate.many import averaged, locate_many
from engram.locate.tracing.averages import AverageTrace, LayerMeans, Mean, Peak, trace_many
from engram.locate.tracing.causal import CausalTracing, trace
from engram.locate.tracing.noise import Noise, Swap, subject_sigma
from engram.locate.tracing.result import CausalTrace, Effect
from engram.locate.tracing.settings import SITES, TraceOptions
from engram.locate.tracing.severed import SeveredComparison, compare_severed
from engram.locate.tracing.windows import usual_window, window_bounds

__all__ = [
    "GROUPS",
    "LOCATORS",
    "SITES",
    "AverageTrace",
    "CausalTrace",
    "CausalTracing",
    "Effect",
    "Grid",
    "LayerMeans",
    "Locator",
    "Mean",
    "Noise",
    "Peak",
    "Place",
    "SeveredComparison",
    "Swap",
    "TraceOptions",
    "averaged",
    "compare_severed",
    "locate",
    "locate_many",
    "locator_named",
    "subject_sigma",
    "token_groups",
    "trace",
    "trace_many",
    "usual_window",
    "window_bounds",
]


class _Verb(ModuleType):
    """A module that can be called: `engram.locate(lm, fact)` is `engram.locate.locate(lm, fact)`."""

    def __call__(self, *arguments: Any, **settings: Any) -> Grid:
        return locate(*arguments, **settings)


sys.modules[__name__].__class__ = _Verb
