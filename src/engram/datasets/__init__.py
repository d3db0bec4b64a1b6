"""Data sets of facts to edit: CounterFact, zsRE, known facts, WISE, `mini`'s own, and yours.

    for case in engram.datasets.load("counterfact.json", sample=100):
        case.fact, case.paraphrases, case.neighborhood

Every reader gives a `Dataset`: an iterable of `Case` that streams from its file and lists what it skipped.
"""

from engram.datasets.counterfact import counterfact
from engram.datasets.dataset import Dataset, Selection, Skipped
from engram.datasets.known import known
from engram.datasets.loading import load, names
from engram.datasets.others import knowns, mini, wise, zsre
from engram.datasets.sources import SOURCES, Source, download
from engram.datasets.userfacts import facts

__all__ = [
    "SOURCES",
    "Dataset",
    "Selection",
    "Skipped",
    "Source",
    "counterfact",
    "download",
    "facts",
    "known",
    "knowns",
    "load",
    "mini",
    "names",
    "wise",
    "zsre",
]
