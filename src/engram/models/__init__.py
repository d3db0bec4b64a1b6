"""Models of many families behind one set of names."""

from engram.models.encoding import Encoded
from engram.models.hooks import Recording, patch, record
from engram.models.layouts import LAYOUTS, Layout
from engram.models.lm import LM
from engram.models.loading import load
from engram.models.resume import Prefix, prefill, resume
from engram.models.runs import Reading, go_on, read
from engram.models.sites import Place, Site

__all__ = [
    "LAYOUTS",
    "LM",
    "Encoded",
    "Layout",
    "Place",
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
