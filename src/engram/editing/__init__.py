"""Making it so: facts become Edits, Edits change models."""

from engram.editing.edit import Edit, FactRecord, Origin
from engram.editing.editor import edit
from engram.editing.finetune import FT, FTL
from engram.editing.methods import METHODS, Method, method_named
from engram.editing.rome import ROME
from engram.editing.rows import applied_rows
from engram.editing.updates import Dense, LowRank, Update

__all__ = [
    "FT",
    "FTL",
    "METHODS",
    "ROME",
    "Dense",
    "Edit",
    "FactRecord",
    "LowRank",
    "Method",
    "Origin",
    "Update",
    "applied_rows",
    "edit",
    "method_named",
]
