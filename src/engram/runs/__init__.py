"""Runs that survive: results that are only appended, and engines that do independent jobs here or on a cluster.

This part knows nothing of what it keeps or does; tracing and evaluation use it in the same way.
"""

from engram.runs.engines import Engine, Local, Ray, engine_named
from engram.runs.store import MemoryStore, Record, RunStore, Store, differing, in_order, read_records, read_run

__all__ = [
    "Engine",
    "Local",
    "MemoryStore",
    "Ray",
    "Record",
    "RunStore",
    "Store",
    "differing",
    "engine_named",
    "in_order",
    "read_records",
    "read_run",
]
