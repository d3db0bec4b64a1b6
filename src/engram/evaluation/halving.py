"""Successive halving: all candidates on few records, the better ones on more, the last ones on all.

Most of a sweep's time goes into candidates that a handful of records show to be bad. Every round keeps a third of the
candidates and doubles the records; results of earlier rounds count in later ones, so no record is done twice. Numbers
that are tried one after the other come in as soon as few candidates are left.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

Candidate = Mapping[str, int | float]
"""Numbers by name, such as {"layer": 1, "clamp": 0.5}."""

FIRST = 4
"""Records of the first round."""
SHARE = 3
"""One in so many candidates goes on, but never fewer than two."""
FEW = 5
"""With no more candidates than these the next number comes in, for the best two."""
BEST = 2

Rank = Callable[[Sequence[Candidate], int], list[Candidate]]
"""Tries candidates on the first so many records and returns them, the best one first."""


def combinations(together: Mapping[str, Sequence[int | float]], start: Candidate) -> list[Candidate]:
    """Return every combination of some numbers' values, with the others as they start."""
    return [dict(zip(together, values, strict=True)) | dict(start) for values in product(*together.values())]


def halve(
    pool: Sequence[Candidate], then: Mapping[str, Sequence[int | float]], total: int, rank: Rank
) -> list[Candidate]:
    """Return the candidates of the last round, the best one first.

    Args:
        pool: the first candidates.
        then: numbers that are tried afterwards, by name.
        total: the number of records.
        rank: tries candidates.
    """
    waiting = list(then.items())
    count = min(FIRST, total)
    while True:
        ranked = rank(pool, count)
        if waiting and (len(pool) <= FEW or count == total):
            name, values = waiting.pop(0)
            pool = _distinct([{**best, name: value} for best in ranked[:BEST] for value in (best[name], *values)])
        elif count == total:
            return ranked
        else:
            pool = ranked[: max(BEST, -(-len(pool) // SHARE))]
            count = min(total, 2 * count)


def edits_needed(pool: Sequence[Candidate], then: Mapping[str, Sequence[int | float]], total: int) -> int:
    """Return about how many edits a search makes; which candidates go on matters little."""
    done: dict[str, int] = {}

    def rank(some: Sequence[Candidate], count: int) -> list[Candidate]:
        done.update({str(candidate): count for candidate in some})
        return list(some)

    halve(pool, then, total, rank)
    return sum(done.values())


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    return list({str(sorted(candidate.items())): candidate for candidate in candidates}.values())
