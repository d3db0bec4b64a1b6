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
    from engram.editing import FT, FTL, ROME, Edit, applied_rows, edit
    from engram.models import LM, Layout, Site, load, patch, record, resume
    from engram.stats import statistics

__all__ = [
    "FT",
    "FTL",
    "LM",
    "ROME",
    "Case",
    "Edit",
    "EngramError",
    "Fact",
    "Layout",
    "Site",
    "__version__",
    "applied_rows",
    "edit",
    "load",
    "patch",
    "record",
    "resume",
    "statistics",
]

_HOMES = {
    "Edit": "editing",
    "FT": "editing",
    "FTL": "editing",
    "LM": "models",
    "ROME": "editing",
    "Layout": "models",
    "Site": "models",
    "applied_rows": "editing",
    "edit": "editing",
    "load": "models",
    "patch": "models",
    "record": "models",
    "resume": "models",
    "statistics": "stats",
}
"""Where each lazily imported name lives."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"engram.{_HOMES[name]}"), name)
    if name in ("datasets", "editing", "evaluation", "locate", "models", "stats"):
        return import_module(f"engram.{name}")
    raise AttributeError(f"module 'engram' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
