"""What a worker does: edit the cases of a batch, score them before and after, and survive the ones that fail."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engram.editing import Edit, Method
from engram.errors import EngramError
from engram.evaluation.editors import Unedited, edits_of
from engram.evaluation.measuring import Scoring
from engram.evaluation.scores import CaseScores
from engram.evaluation.scoring import score_cases
from engram.facts import Case

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Cases to be done together.

    Args:
        cases: the cases.
        before: scores of the unedited model by case id, where they are known.
    """

    cases: tuple[Case, ...]
    before: dict[str, CaseScores] = field(default_factory=dict[str, CaseScores])


@dataclass(slots=True)
class Done:
    """One case, done or failed.

    Args:
        case: the case.
        before: scores of the unedited model.
        after: scores under the edit.
        error: why it failed; then `after`, and perhaps `before`, are missing.
        notes: what the method has to say.
        seconds: time for the edit and for the scores, the batch's divided by its cases.
    """

    case: Case
    before: CaseScores | None = None
    after: CaseScores | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class CaseWorker:
    """Edits and scores cases; the model is as before afterwards.

    Args:
        lm: the model.
        method: what makes the edits.
        scoring: what is measured.
    """

    lm: "LM"
    method: Method
    scoring: Scoring

    def __call__(self, job: Job) -> list[Done]:
        """Do all cases of a job. One that fails is marked; the others are not touched by it."""
        done = [Done(case, before=job.before.get(case.id)) for case in job.cases]
        self._score("before", [item for item in done if item.before is None], None)
        edits: dict[str, Edit | None] = {}
        self._edit([item for item in done if item.error is None], edits)
        for item in done:
            edit = edits.get(item.case.id)
            item.notes = () if edit is None else edit.notes
        if isinstance(self.method, Unedited):
            for item in done:
                item.after = item.before
        else:
            self._score("after", [item for item in done if item.error is None], edits)
        return done

    def _edit(self, items: Sequence[Done], edits: dict[str, Edit | None]) -> None:
        """Edit some cases together; where that fails, one by one, so that only the bad ones fail."""
        if not items:
            return
        begin = time.perf_counter()
        try:
            made = edits_of(self.lm, [item.case.fact for item in items], self.method)
        except EngramError as error:
            if len(items) == 1:
                self._fail(items[0], error)
                items[0].seconds["edit"] = time.perf_counter() - begin
                return
            for item in items:
                self._edit([item], edits)
            return
        each = (time.perf_counter() - begin) / len(items)
        for item, edit in zip(items, made, strict=True):
            edits[item.case.id] = edit
            item.seconds["edit"] = each

    def _score(self, when: str, items: Sequence[Done], edits: dict[str, Edit | None] | None) -> None:
        """Score some cases together; where that fails, one by one, so that only the bad ones fail."""
        if not items:
            return
        begin = time.perf_counter()
        under = None if edits is None else [edits[item.case.id] for item in items]
        try:
            scores = score_cases(self.lm, [item.case for item in items], under, scoring=self.scoring)
        except EngramError as error:
            if len(items) == 1:
                self._fail(items[0], error)
                return
            for item in items:
                self._score(when, [item], edits)
            return
        each = (time.perf_counter() - begin) / len(items)
        for item, result in zip(items, scores, strict=True):
            setattr(item, when, result)
            item.seconds[when] = each

    def _fail(self, item: Done, error: Exception) -> None:
        item.error = f"{type(error).__name__}: {error}"
        logger.warning("case %s failed: %s", item.case.id, item.error)


@dataclass(frozen=True, slots=True)
class Portable:
    """Makes a `CaseWorker` in another process, on the device that this process has.

    Args:
        worker: a worker whose model is on the CPU.
        device: where the model belongs; the process's first GPU for "cuda".
    """

    worker: CaseWorker
    device: str

    def __call__(self) -> Any:
        """Put the model where it belongs, and return the worker."""
        self.worker.lm.model.to(self.device)
        return self.worker
