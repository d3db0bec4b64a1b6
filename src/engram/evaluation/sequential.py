"""The sequential protocol: edits pile up in the model, and earlier ones are scored again at checkpoints.

Scores right after an edit hide what later edits do to it. At each checkpoint every case edited so far is scored again
and held against the frozen unedited model. The changed weights are kept in the run folder after every step, so an
interrupted run goes on from exactly the weights that it had.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engram.editing import Edit, Method
from engram.errors import EngramError, NumericalError, RunError
from engram.evaluation.editors import edits_of, prepared
from engram.evaluation.measuring import Scoring
from engram.evaluation.records import record_of
from engram.evaluation.scores import CaseScores
from engram.evaluation.scoring import score_cases
from engram.evaluation.texts import References
from engram.evaluation.work import Done
from engram.facts import Case
from engram.runs import Store

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

CHECKPOINTS = (1, 10, 100, 1000)
WEIGHTS = "weights.safetensors"


class Pile:
    """A model with edits added to its weights one after another, and the way back.

    Args:
        lm: the model.
        file: where the changed weights are kept; nowhere when `None`.
    """

    def __init__(self, lm: "LM", file: Path | None) -> None:
        self._lm, self._file = lm, file
        self._originals: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, edit: Edit, *, steps: int) -> None:
        """Write an edit into the weights, and keep what the weights are after so many steps.

        Raises:
            NumericalError: a weight would become NaN or infinite; nothing is written.
            RunError: the weights cannot be kept.
        """
        edit.require_fit(self._lm)
        values = {name: self._sum(name, edit) for name in edit.updates}
        for name, value in values.items():
            if not torch.isfinite(value).all():
                raise NumericalError(f"{name!r} would contain NaN or infinity; the edit was left out.")
        for name, value in values.items():
            self._write(name, value)
        self.keep(steps)

    def _sum(self, name: str, edit: Edit) -> Tensor:
        weight = self._lm.model.get_parameter(name)
        return (weight.float() + edit.delta(name).to(weight.device).float()).to(weight.dtype)

    def _write(self, name: str, value: Tensor) -> None:
        weight = self._lm.model.get_parameter(name)
        self._originals.setdefault(name, weight.detach().clone())
        weight.copy_(value)

    def keep(self, steps: int) -> None:
        """Keep the changed weights on disk in one piece.

        Raises:
            RunError: they cannot be written.
        """
        if self._file is None:
            return
        part = self._file.with_name(f"{self._file.name}.part")
        changed = {name: self._lm.model.get_parameter(name).detach().cpu().contiguous() for name in self._originals}
        try:
            save_file(changed, part, metadata={"steps": str(steps)})
            part.replace(self._file)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise RunError(
                f"The weights after {steps} edits cannot be kept in {self._file}: {error}. Make room and start the "
                f"same command again to continue."
            ) from error

    @torch.no_grad()
    def restore(self) -> int:
        """Load the weights that an earlier process kept, and return after how many steps that was.

        Raises:
            RunError: the file is broken.
        """
        if self._file is None or not self._file.exists():
            return 0
        try:
            with safe_open(self._file, framework="pt") as file:
                for name in file.keys():  # safe_open is no mapping
                    self._write(name, file.get_tensor(name))
                return int(file.metadata()["steps"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self._file} cannot be read: {error}. Remove the run folder and start again.") from error

    @torch.no_grad()
    def undo(self) -> None:
        """Put the original weights back, bit for bit."""
        for name, original in self._originals.items():
            self._lm.model.get_parameter(name).copy_(original)
        self._originals = {}


def evaluate_sequentially(
    lm: "LM",
    cases: Sequence[Case],
    method: Method,
    scoring: Scoring,
    *,
    before: Store,
    after: Store,
    references: References | None,
    checkpoints: Sequence[int],
    folder: Path | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Edit case after case, keep the edits, and score earlier cases again at checkpoints.

    One record per step (the case right after its edit), and one per checkpoint and case, with `at` the number of
    edits and `case` the case's id.
    """
    _score_unedited(lm, cases, scoring, before, references)
    ready = prepared(lm, method)
    points = {n for n in checkpoints if n < len(cases)} | {len(cases)}
    pile = Pile(lm, None if folder is None else folder / WEIGHTS)
    try:
        finished = pile.restore()
        for step, case in enumerate(cases, start=1):
            if step > finished:
                _step(lm, case, step, ready, pile, after)
            if step >= finished:
                _score_step(lm, case, step, scoring, before, after, references)
                if step in points:
                    _checkpoint(lm, cases[:step], step, scoring, before, after, references)
            if progress is not None:
                progress(step, len(cases))
    finally:
        pile.undo()


def _score_unedited(
    lm: "LM", cases: Sequence[Case], scoring: Scoring, before: Store, references: References | None
) -> None:
    for case in cases:
        if case.id in before:
            continue
        done = Done(case)
        try:
            (done.before,) = score_cases(lm, [case], scoring=scoring)
        except EngramError as error:
            done.error = f"{type(error).__name__}: {error}"
        before.append([record_of(done, references=references, when="before")])


def _step(lm: "LM", case: Case, step: int, method: Method, pile: Pile, after: Store) -> None:
    """Make one edit on top of the others. One that cannot be made is recorded and leaves the model as it was."""
    try:
        (edit,) = edits_of(lm, [case.fact], method)
        if edit is not None:
            pile.add(edit, steps=step)
            return
    except RunError:
        raise
    except EngramError as error:
        done = Done(case, error=f"{type(error).__name__}: {error}")
        after.append([{**record_of(done, references=None), "step": step}])
    pile.keep(step)


def _score_step(
    lm: "LM", case: Case, step: int, scoring: Scoring, before: Store, after: Store, references: References | None
) -> None:
    if case.id not in after:
        done = _scored(lm, case, scoring, before)
        after.append([{**record_of(done, references=references), "step": step}])


def _checkpoint(
    lm: "LM",
    cases: Sequence[Case],
    step: int,
    scoring: Scoring,
    before: Store,
    after: Store,
    references: References | None,
) -> None:
    for case in cases:
        identity = f"{case.id} after {step}"
        if identity not in after:
            done = _scored(lm, case, scoring, before)
            record: dict[str, Any] = record_of(done, references=references)
            after.append([{**record, "id": identity, "case": case.id, "at": step}])


def _scored(lm: "LM", case: Case, scoring: Scoring, before: Store) -> Done:
    known = before.get(case.id)
    if known is None or "scores" not in known:
        return Done(case, error="it could not be scored on the unedited model")
    done = Done(case, before=CaseScores.from_plain(known["scores"]))
    try:
        (done.after,) = score_cases(lm, [case], scoring=scoring)
    except EngramError as error:
        done.error = f"{type(error).__name__}: {error}"
    return done
