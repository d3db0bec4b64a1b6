"""Making it so: facts become Edits, Edits change models."""

import sys
from importlib import import_module

from engram.editing.changes import Dense, LowRank, Update
from engram.editing.check import Check, check
from engram.editing.edit import Edit
from engram.editing.editor import edit
from engram.editing.guard import Health, Thresholds, guard
from engram.editing.methods import METHODS, Method, method_named
from engram.editing.methods.finetune import FT, FTL
from engram.editing.methods.grace import GRACE
from engram.editing.methods.memit import MEMIT
from engram.editing.methods.rome import ROME
from engram.editing.records import FactRecord, Origin
from engram.editing.rows import applied_rows
from engram.editing.tuned import Tuned, forget_tuned, tuned

__all__ = [
    "FT",
    "FTL",
    "GRACE",
    "MEMIT",
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

_MOVED = {
    "contexts": "parts.contexts",
    "finetune": "methods.finetune",
    "forwarding": "parts.passes",
    "layers": "parts.published",
    "prompts": "parts.prompts",
    "rome": "methods.rome",
    "statistics": "parts.key_statistics",
    "targets": "parts.targets",
    "updates": "changes.weight",
    "values": "parts.descent",
}
"""What methods that were written for version 0.1 import, and where it is now."""

sys.modules.update({f"{__name__}.{old}": import_module(f"{__name__}.{new}") for old, new in _MOVED.items()})
