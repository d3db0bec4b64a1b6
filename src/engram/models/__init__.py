"""Models of many families behind one set of names."""

from engram.models.encoding import Encoded
from engram.models.hooks import Recording, Site, patch, record
from engram.models.layouts import LAYOUTS, Layout
from engram.models.lm import LM
from engram.models.loading import load
from engram.models.resume import Prefix, prefill, resume

__all__ = [
    "LAYOUTS",
    "LM",
    "Encoded",
    "Layout",
    "Prefix",
    "Recording",
    "Site",
    "load",
    "patch",
    "prefill",
    "record",
    "resume",
]
