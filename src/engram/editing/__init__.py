"""Making it so: facts become Edits, Edits change models."""

from engram.editing.check import Check, check
from engram.editing.edit import Edit, FactRecord, Origin
from engram.editing.editor import edit
from engram.editing.finetune import FT, FTL
from engram.editing.guard import Health, Thresholds, guard
from engram.editing.methods import METHODS, Method, method_named
from engram.editing.rome import ROME
from engram.editing.rows import applied_rows
from engram.editing.tuned import Tuned, forget_tuned, tuned
from engram.editing.updates import Dense, LowRank, Update

__all__ = [
    "FT",
    "FTL",
    "METHODS",
    "ROME",
    "Check",
    "Dense",
    "Edit",
    "FactRecord",
    "Health",
    "LowRank",
    "Method",
    "Origin",
    "Thresholds",
    "Tuned",
    "Update",
    "applied_rows",
    "check",
    "edit",
    "forget_tuned",
    "guard",
    "method_named",
    "tuned",
]
