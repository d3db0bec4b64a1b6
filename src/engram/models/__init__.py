"""Models of many families behind one set of names."""

from engram.models.encoding import Encoded
from engram.models.hooks import Recording, Site, patch, record
from engram.models.layouts import LAYOUTS, Layout
from engram.models.lm import LM
from engram.models.loading import load
from engram.models.resume import Prefix, prefill, resume
from engram.models.runs import Reading, go_on, read

__all__ = [
    "LAYOUTS",
    "LM",
    "Encoded",
    "Layout",
    "Prefix",
    "Reading",
    "Recording",
    "Site",
    "go_on",
    "load",
    "patch",
    "prefill",
    "read",
    "record",
    "resume",
]
