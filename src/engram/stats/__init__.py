"""What the keys of a model look like over text: their second moments, which say in which directions to write."""

from engram.stats.corpus import Corpus, open_corpus
from engram.stats.counting import Progress, statistics
from engram.stats.covariance import KeyStatistics, LayerMoment

__all__ = ["Corpus", "KeyStatistics", "LayerMoment", "Progress", "open_corpus", "statistics"]
