"""What an edit may do: one kind of change per file, by name."""

from engram.editing.changes.change import Change
from engram.editing.changes.codebook import Codebook
from engram.editing.changes.prompt import Preamble, PromptChange, preamble
from engram.editing.changes.site import SiteChange
from engram.editing.changes.weight import Dense, LowRank, Update, WeightChange

KINDS: dict[str, type[Change]] = {kind.kind: kind for kind in (Codebook, Dense, LowRank, Preamble)}
"""Every kind by its name in `edit.json`. A new kind is one class with the abilities of `Change`, and one entry here."""

__all__ = [
    "KINDS",
    "Change",
    "Codebook",
    "Dense",
    "LowRank",
    "Preamble",
    "PromptChange",
    "SiteChange",
    "Update",
    "WeightChange",
    "preamble",
]
