"""Metrics against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram import intervals
from engram.evaluation import metrics
from engram.evaluation.texts import References

NLL = np.array([[1.0, 2.0], [3.0, 0.5], [1.0, 1.0]])


def test_successes_and_magnitudes_by_hand() -> None:
    assert metrics.success(NLL) == pytest.approx(1 / 3)  # a tie is no success
    assert metrics.kept(NLL) == pytest.approx(1 / 3)
    by_hand = (math.exp(-1) - math.exp(-2) + math.exp(-3) - math.exp(-0.5) + 0) / 3
    assert metrics.magnitude(NLL) == pytest.approx(by_hand)
    assert metrics.kept_magnitude(NLL) == pytest.approx(-by_hand)


def test_harmonic_mean_of_the_published_rome_row_is_its_published_score() -> None:
    assert intervals.harmonic_mean([1.000, 0.964, 0.754]) == pytest.approx(0.892, abs=5e-4)
    assert intervals.harmonic_mean([0.222, 0.247, 0.781]) == pytest.approx(0.305, abs=5e-4)
    assert intervals.harmonic_mean([1.0, 0.0, 1.0]) == 0.0


def test_ngram_entropy_by_hand() -> None:
    # "a b a b": bigrams ab twice, ba once; trigrams aba, bab once each.
    bigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert metrics.ngram_entropy("a b a b", 2) == pytest.approx(bigrams)
    assert metrics.ngram_entropy("a b a b", 3) == pytest.approx(1.0)
    assert metrics.fluency(["a b a b"]) == pytest.approx((2 / 3 * bigrams + 4 / 3 * 1.0) / 2)
    assert metrics.fluency(["a b a b", "a"]) == pytest.approx((2 / 3 * bigrams + 4 / 3 * 1.0) / 4)
    assert metrics.ngram_entropy("", 2) == 0.0


def test_words_are_those_of_the_penn_treebank() -> None:
    assert metrics.words("It isn't Rome's.") == ["It", "is", "n't", "Rome", "'s", "."]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_interval_of_a_mean(values: list[float]) -> None:
    mean, half = intervals.mean_interval(values)
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert half == pytest.approx(1.96 * deviation / math.sqrt(len(values)), rel=1e-4, abs=1e-12)


def test_interval_of_one_value_is_unknown() -> None:
    assert math.isnan(intervals.mean_interval([3.0])[1])


def test_interval_of_the_harmonic_mean_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth = intervals.harmonic_mean([0.95, 0.8, 0.7])
    hits = 0
    for _ in range(400):
        columns = (generator.random((200, 3)) < np.array([0.95, 0.8, 0.7])).astype(float)
        score, half = intervals.harmonic_interval(columns)
        hits += abs(score - truth) <= half
    assert 0.91 < hits / 400 < 0.98


def test_interval_of_a_median_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        values = generator.normal(size=101)
        median, half = intervals.median_interval(values.tolist())
        hits += abs(median) <= half
    assert hits / 400 > 0.9


@pytest.mark.parametrize(
    ("text", "target", "fine"),
    [(" Rome.", "Rome", True), (" Romeo", "Rome", False), (" rome", " Rome", True), ("in Rome", "Rome", False)],
)
def test_a_free_answer_begins_with_the_target_as_whole_words(text: str, target: str, fine: bool) -> None:
    assert metrics.begins_with(text, target) is fine


def test_similarity_of_texts() -> None:
    references = References.fitted(["the tower is in Rome", "the painter was born in Paris"])
    assert references is not None
    assert references.similarity(["tower in Rome"], ["tower in Rome"]) == pytest.approx(1.0)
    assert references.similarity(["tower"], ["painter"]) == 0.0
    near = references.similarity(["a tower in Rome"], ["the tower is in Rome"])
    assert near > references.similarity(["a painter in Rome"], ["the tower is in Rome"]) > 0
    assert References.fitted([]) is None
