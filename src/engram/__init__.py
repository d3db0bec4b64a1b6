"""Engram finds where a transformer language model stores a fact, and changes it.

    lm = engram.load("mini")
    fact = engram.Fact("Space Needle", "The {} is located in the city of", "Rome", original="Seattle")
    trace = engram.trace(lm, fact)                    # where is it?
    edit = engram.edit(lm, fact)                      # make it so; the model is unchanged
    with edit.applied(lm):
        text = lm.generate("The Space Needle is in")

Names are imported when first used, so that `import engram` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engram._version import __version__
from engram.errors import EngramError
from engram.facts import Case, Fact

if TYPE_CHECKING:
    from engram import datasets, editing, evaluation, locate, models, plots, runs, stats
    from engram.editing import FT, FTL, GRACE, MEMIT, ROME, Check, Edit, applied_rows, check, edit, guard
    from engram.evaluation import Report, evaluate, tune
    from engram.locate import (
        AverageTrace,
        CausalTrace,
        Grid,
        Noise,
        Swap,
        compare_severed,
        locate_many,
        trace,
        trace_many,
    )
    from engram.models import LM, Layout, Site, load, patch, record, resume
    from engram.stats import KeyStatistics, statistics

__all__ = [
    "FT",
    "FTL",
    "GRACE",
    "LM",
    "MEMIT",
    "ROME",
    "AverageTrace",
    "Case",
    "CausalTrace",
    "Check",
    "Edit",
    "EngramError",
    "Fact",
    "Grid",
    "KeyStatistics",
    "Layout",
    "Noise",
    "Report",
    "Site",
    "Swap",
    "__version__",
    "applied_rows",
    "check",
    "compare_severed",
    "datasets",
    "edit",
    "editing",
    "evaluate",
    "evaluation",
    "guard",
    "load",
    "locate",
    "locate_many",
    "models",
    "patch",
    "plots",
    "record",
    "resume",
    "runs",
    "statistics",
    "stats",
    "trace",
    "trace_many",
    "tune",
]

_PARTS = ("datasets", "editing", "evaluation", "locate", "models", "plots", "runs", "stats")
_HOMES = {
    "editing": ("FT", "FTL", "GRACE", "MEMIT", "ROME", "Check", "Edit", "applied_rows", "check", "edit", "guard"),
    "evaluation": ("Report", "evaluate", "tune"),
    "locate": (
        "AverageTrace",
        "CausalTrace",
        "Grid",
        "Noise",
        "Swap",
        "compare_severed",
        "locate_many",
        "trace",
        "trace_many",
    ),
    "models": ("LM", "Layout", "Site", "load", "patch", "record", "resume"),
    "stats": ("KeyStatistics", "statistics"),
}
"""Where each lazily imported name lives."""


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"engram.{name}")
    for part, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"engram.{part}"), name)
    raise AttributeError(f"module 'engram' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
