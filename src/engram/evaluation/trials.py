"""Candidates of a tuning run on its records: edited and scored once, kept, and averaged as often as asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from engram.datasets.dataset import groups
from engram.editing import Method
from engram.editing.parts.editor import Editor
from engram.editing.tuned import Tried
from engram.evaluation.editors import Unedited, with_numbers
from engram.evaluation.halving import Candidate
from engram.evaluation.measuring import Scoring
from engram.evaluation.metrics import relative_score
from engram.evaluation.records import record_of
from engram.evaluation.scores import CaseScores
from engram.evaluation.work import CaseWorker, Job
from engram.facts import Case
from engram.intervals import jackknife
from engram.runs import RunStore

if TYPE_CHECKING:
    from engram.models import LM

COLUMNS = ("ES", "PS", "NS")
_MAGNITUDES = ("EM", "PM", "NM")
_UNEDITED = "unedited"
TOGETHER = 4


@dataclass(slots=True)
class Trials:
    """Tries candidates on records; every edit's result goes into the store and is never made again.

    Args:
        lm: the model.
        method: the method without the numbers that are tuned.
        cases: the records.
        scoring: what is measured.
        store: the results.
        report: told what is being done, how many edits are done, and about how many there will be.
        layers: all layers that may be tried: their key statistics are counted in one pass.
        total: about how many there will be.
    """

    lm: "LM"
    method: Method
    cases: Sequence[Case]
    scoring: Scoring
    store: RunStore
    report: Callable[[str, int, int], None]
    layers: Sequence[int] = ()
    total: int = 0
    _ready: bool = False

    def run(self, candidate: Candidate, count: int) -> None:
        """Edit and score the first so many records with a candidate's numbers, where that was not done before."""
        name = named(candidate)
        if all(_id(name, case) in self.store for case in self.cases[:count]):
            return
        self._prepare()
        self._do(name, with_numbers(self.method, candidate), self.cases[:count])

    def tried(self, candidate: Candidate, count: int) -> Tried:
        """Return a candidate's score and columns over the first so many records."""
        rows = self._rows(named(candidate), count)
        score, half = jackknife(relative_score, rows[:, :4])
        return Tried(
            settings=dict(candidate), cases=count, score=100 * score, half_width=100 * half, columns=_percent(rows)
        )

    def key(self, candidate: Candidate, count: int) -> tuple[float, float]:
        """Return what candidates are sorted by: the score, then the probabilities behind it."""
        rows = self._rows(named(candidate), count)
        return relative_score(rows[:, :4]), float(rows[:, 4].mean())

    def beats(self, one: Candidate, other: Candidate) -> bool:
        """Say whether a candidate's score is above another's by more than half the 95 % interval of the difference.

        The difference is taken over the same records; a single record has no interval and shows nothing.
        """
        count = len(self.cases)
        pairs = np.hstack([self._rows(named(candidate), count)[:, :4] for candidate in (one, other)])
        lead, half = jackknife(lambda rows: relative_score(rows[:, :4]) - relative_score(rows[:, 4:]), pairs)
        return lead > half

    def unedited(self) -> dict[str, float]:
        """Return the unedited model's columns in percent."""
        return _percent(self._rows(_UNEDITED, len(self.cases)))

    def _prepare(self) -> None:
        """Do once what all candidates share: the unedited model's scores, contexts, key statistics of every layer."""
        if self._ready:
            return
        self._ready = True
        self._do(_UNEDITED, Unedited(), self.cases)
        if isinstance(self.method, Editor):
            self.method = self.method.prepared(self.lm, layers=self.layers, progress=self.report)

    def _do(self, name: str, method: Method, cases: Sequence[Case]) -> None:
        missing = [case for case in cases if _id(name, case) not in self.store]
        worker = CaseWorker(self.lm, method, self.scoring)
        for some in groups(missing, TOGETHER):
            self.report(name, self._finished, self.total)
            results = worker(Job(some, self._before(some)))
            self.store.append({**record_of(d, references=None), "id": _id(name, d.case)} for d in results)

    @property
    def _finished(self) -> int:
        return min(self.total, max(0, len(self.store) - len(self.cases)))

    def _before(self, cases: Sequence[Case]) -> dict[str, CaseScores]:
        known = {case.id: self.store.get(_id(_UNEDITED, case)) for case in cases}
        return {
            name: CaseScores.from_plain(record["scores"])
            for name, record in known.items()
            if record is not None and "scores" in record
        }

    def _rows(self, name: str, count: int) -> Float[np.ndarray, "case 5"]:
        """Return per record ES, PS, NS, the unedited model's NS, and the sum of the probabilities behind them."""
        return np.array([self._row(name, case) for case in self.cases[:count]])

    def _row(self, name: str, case: Case) -> list[float]:
        plain = (self.store.get(_id(_UNEDITED, case)) or {}).get("metrics")
        if plain is None:  # not even the unedited model could be scored
            return [0.0] * 5
        metrics = (self.store.get(_id(name, case)) or {}).get("metrics", plain)  # an edit that failed changed nothing
        return [*(metrics[key] for key in COLUMNS), plain["NS"], sum(metrics[key] for key in _MAGNITUDES)]


def _percent(rows: Float[np.ndarray, "case 5"]) -> dict[str, float]:
    return {key: 100 * float(mean) for key, mean in zip(COLUMNS, rows.mean(axis=0), strict=False)}


def named(candidate: Candidate) -> str:
    """Return a candidate's name, as in "layer 1, clamp 0.5"."""
    return ", ".join(f"{name} {value:g}" for name, value in candidate.items())


def _id(name: str, case: Case) -> str:
    return f"{name} | {case.id}"
