"""What the keys of a model look like over text: their second moments, which say in which directions to write."""

from engram.progress import Progress
from engram.stats.corpus import Corpus, open_corpus
from engram.stats.covariance import KeyStatistics, LayerMoment
from engram.stats.finding import kept_statistics, statistics

__all__ = ["Corpus", "KeyStatistics", "LayerMoment", "Progress", "kept_statistics", "open_corpus", "statistics"]
