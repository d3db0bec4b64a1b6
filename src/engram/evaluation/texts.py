"""How much a text is about what it should be: TF-IDF similarity with reference texts (RS)."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engram.errors import DataError


class References:
    """TF-IDF weights, fitted on a data set's reference texts or read from the published files.

    Args:
        vectorizer: a fitted `TfidfVectorizer`.
    """

    def __init__(self, vectorizer: Any) -> None:
        self._vectorizer = vectorizer

    @classmethod
    def fitted(cls, texts: Iterable[str]) -> "References | None":
        """Fit on texts; `None` where there are none."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # slow import, only where it is needed

        documents = sorted(set(texts))
        return cls(TfidfVectorizer().fit(documents)) if documents else None

    @classmethod
    def published(cls, folder: str | Path) -> "References":
        """Read `idf.npy` and `tfidf_vocab.json`, with which the paper's RS was computed.

        Raises:
            DataError: one of them is missing or broken.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        place = Path(folder)
        try:
            vocabulary = json.loads((place / "tfidf_vocab.json").read_text(encoding="utf-8"))
            weights = np.load(place / "idf.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{place} should hold idf.npy and tfidf_vocab.json: {error}") from error
        vectorizer = TfidfVectorizer(vocabulary=vocabulary)
        vectorizer.idf_ = weights
        return cls(vectorizer)

    def similarity(self, texts: Sequence[str], references: Sequence[str]) -> float:
        """Return the cosine between all texts joined and all references joined; 0 where one has no known word."""
        vectors = self._vectorizer.transform([" ".join(texts), " ".join(references)])
        return float((vectors[0] @ vectors[1].T).toarray()[0, 0])
