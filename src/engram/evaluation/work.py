"""What a worker does: edit the cases of a batch, score them before and after, and survive the ones that fail."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engram.editing import Edit, Method
from engram.errors import EngramError
from engram.evaluation.editors import Unedited, edit_of, edits_of
from engram.evaluation.measuring import Scoring, all_under
from engram.evaluation.scores import CaseScores
from engram.evaluation.scoring import score_cases
from engram.facts import Case
from engram.progress import Progress

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Cases to be done together.

    Args:
        cases: the cases.
        before: scores of the unedited model by case id, where they are known.
        under: the Edit that all of them are scored under; each is edited alone when not given.
    """

    cases: tuple[Case, ...]
    before: dict[str, CaseScores] = field(default_factory=dict[str, CaseScores])
    under: Edit | None = None


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
        good = [item for item in done if item.error is None]
        if job.under is not None:
            with all_under(self.lm, job.under):
                self._after(good, {item.case.id: None for item in good}, changed=bool(job.under))
            return done
        edits: dict[str, Edit | None] = {}
        self._edit(good, edits)
        for item in done:
            edit = edits.get(item.case.id)
            item.notes = () if edit is None else edit.notes
        changed = not isinstance(self.method, Unedited)
        self._after([item for item in done if item.error is None], edits, changed=changed)
        return done

    def together(
        self, cases: Sequence[Case], onto: Edit | None, progress: Progress | None = None
    ) -> tuple[Edit, list[Done]]:
        """Make one Edit of all cases, perhaps on top of another.

        Where that fails, the cases whose facts are to blame are marked and left out, and the Edit is made of the rest.

        Args:
            cases: the cases.
            onto: the Edit to go on from.
            progress: told what is being done.

        Returns:
            The Edit, and every case with the time for its share of it; the first one has what the method says.
        """
        done = [Done(case) for case in cases]
        begin, good = time.perf_counter(), done
        edit = self._made(good, onto, progress)
        while edit is None and good:
            good = [item for item in done if item.error is None]
            edit = self._made(good, onto, progress) if good else None
        each = (time.perf_counter() - begin) / len(cases)
        for item in done:
            item.seconds["edit"] = each
        earlier = () if onto is None else onto.notes
        if good and edit is not None:
            good[0].notes = tuple(note for note in edit.notes if note not in earlier)
        in_force = onto if edit is None else edit
        return Edit.of(self.lm, {}, ()) if in_force is None else in_force, done

    def _made(self, items: Sequence[Done], onto: Edit | None, progress: Progress | None = None) -> Edit | None:
        """Return one Edit of some cases; where it cannot be made, mark those that are to blame and return nothing."""
        try:
            return edit_of(self.lm, [item.case.fact for item in items], self.method, onto=onto, progress=progress)
        except EngramError as error:
            if len(items) > 1:
                half = len(items) // 2
                for part in (items[:half], items[half:]):
                    self._made(part, onto)
            if len(items) == 1 or all(item.error is None for item in items):
                for item in items:
                    self._fail(item, error)
            return None

    def _after(self, items: Sequence[Done], edits: dict[str, Edit | None], *, changed: bool) -> None:
        """Score some cases under their edits; what was not changed is as before."""
        if changed:
            self._score("after", items, edits)
            return
        for item in items:
            item.after = item.before

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
