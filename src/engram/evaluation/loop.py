"""The one loop of every evaluation: some cases are edited, scored, and the edit is undone or gone on from.

    for group in groups(cases, at_once):
        edit = method(lm, facts of the group, onto=edit if keep else None)
        score the group under it

`Plan(at_once=1)` undoes every edit, `Plan(at_once=1000)` scores a thousand facts that are in one Edit, `keep` goes on
from each Edit to the next: scores right after an edit hide what later edits do to it, so at checkpoints every case so
far is scored again and held against the unedited model. The model's weights are never touched: scores are taken beside
the Edit in force, whose sums are those of fp32 in any dtype.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.datasets.dataset import groups
from engram.editing import Edit
from engram.errors import SettingError, did_you_mean
from engram.evaluation.kept import KeptEdits
from engram.evaluation.records import record_of
from engram.evaluation.scores import CaseScores
from engram.evaluation.texts import References
from engram.evaluation.work import CaseWorker, Done, Job
from engram.facts import Case
from engram.progress import Doing, Progress, named
from engram.runs import Engine, Store

CASES = Doing("editing and scoring", unit="cases")
CHECKPOINTS = (1, 10, 100, 1000)
PROTOCOLS = ("sequential", "single")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How cases come into Edits.

    Args:
        at_once: how many cases are in one Edit.
        keep: whether an Edit goes on from the one before; otherwise that one is undone.
        batch: cases scored together (where every case has its own Edit, edited together, too).
        checkpoints: after how many cases earlier ones are scored again (with `keep`); after the last one always.

    Raises:
        SettingError: a number below 1.
    """

    at_once: int = 1
    keep: bool = False
    batch: int = 1
    checkpoints: tuple[int, ...] = CHECKPOINTS

    def __post_init__(self) -> None:
        for name in ("at_once", "batch"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)}; it must be 1 or more.")

    @classmethod
    def of(cls, protocol: str | None, at_once: int, keep: bool, **more: Any) -> "Plan":
        """Return a plan from what a user types: "single" and "sequential" are short forms.

        Raises:
            SettingError: an unknown protocol, or one that contradicts the rest.
        """
        if protocol is not None and protocol not in PROTOCOLS:
            raise SettingError(f"There is no protocol {protocol!r}. {did_you_mean(protocol, PROTOCOLS)}")
        if protocol == "single" and (keep or at_once > 1):
            raise SettingError(
                "The protocol 'single' puts one case into an Edit and undoes it; leave it out to use at_once or keep."
            )
        return cls(at_once=at_once, keep=keep or protocol == "sequential", **more)

    @property
    def alone(self) -> bool:
        """Whether every case has an Edit of its own, which is undone; only then cases do not depend on each other."""
        return self.at_once == 1 and not self.keep

    @property
    def protocol(self) -> str:
        """What it is called in a run's settings."""
        return "sequential" if self.keep else "single" if self.at_once == 1 else "mass"

    def describe(self) -> dict[str, Any]:
        """Return what decides the results beside the protocol's name, as plain values."""
        many = {} if self.at_once == 1 else {"at_once": self.at_once}
        return {**many, **({"checkpoints": list(self.checkpoints)} if self.keep else {})}

    def points(self, count: int) -> set[int]:
        """Return after how many of all cases earlier ones are scored again: where an Edit is complete."""
        if not self.keep:
            return set()
        whole = (min(count, -(-point // self.at_once) * self.at_once) for point in self.checkpoints if point <= count)
        return {*whole, count}


@dataclass(frozen=True, slots=True)
class Book:
    """Where scores are written: the unedited model's, which all runs beside it share, and this run's.

    Args:
        before: the unedited model's.
        after: this run's.
        references: TF-IDF weights for RS.
    """

    before: Store
    after: Store
    references: References | None

    def known(self, cases: Sequence[Case]) -> dict[str, CaseScores]:
        """Return the unedited model's scores of cases, where they are known."""
        records = {case.id: self.before.get(case.id) for case in cases}
        return {
            name: CaseScores.from_plain(record["scores"])
            for name, record in records.items()
            if record is not None and "scores" in record
        }

    def write(self, results: Sequence[Done], more: Callable[[Case], Mapping[str, Any]] = lambda _: {}) -> None:
        """Write what is new.

        Args:
            results: cases, done or failed.
            more: what a case's line has besides; an `id` of its own among it.
        """
        plain = [done for done in results if done.before is not None and done.case.id not in self.before]
        self.before.append(record_of(done, references=self.references, when="before") for done in plain)
        lines = [(done, {"id": done.case.id, **more(done.case)}) for done in results]
        self.after.append(
            {**record_of(done, references=self.references), **line}
            for done, line in lines
            if line["id"] not in self.after
        )


def one_by_one(
    batches: Sequence[tuple[Case, ...]],
    book: Book,
    engine: Engine,
    workers: Callable[[], AbstractContextManager[Callable[[], Any]]],
    progress: Progress,
) -> None:
    """Do cases that have an Edit each, which is undone, by any engine: they do not depend on each other.

    Args:
        batches: the cases, in the batches in which they are done.
        book: where scores are written.
        engine: what the batches are done by.
        workers: gives what makes workers.
        progress: told about cases.
    """
    report, total = named(progress, CASES), sum(len(cases) for cases in batches)
    finished = sum(case.id in book.after for cases in batches for case in cases)
    report(finished, total)
    if finished == total:
        return
    missing = (cases for cases in batches if any(case.id not in book.after for case in cases))
    jobs: Iterator[Job] = (Job(cases, book.known(cases)) for cases in missing)
    with workers() as build:
        for results in engine.run(build, jobs):
            finished += sum(done.case.id not in book.after for done in results)
            book.write(results)
            report(finished, total)


@dataclass(slots=True)
class Together:
    """Does cases whose Edits hold many of them, or go on from each other.

    Args:
        cases: all cases.
        plan: how they come into Edits.
        book: where scores are written.
        build: makes the worker; not called where all is done.
        folder: the run's folder, for the Edits.
        progress: told about cases, and by the method.
    """

    cases: Sequence[Case]
    plan: Plan
    book: Book
    build: Callable[[], CaseWorker]
    folder: Path | None
    progress: Progress

    def run(self) -> None:
        """Do what is missing.

        Raises:
            RunError: an Edit cannot be kept, or one that was kept is broken.
        """
        report, total, points = named(self.progress, CASES), len(self.cases), self.plan.points(len(self.cases))
        if self._finished(points):
            report(total, total)
            return
        kept = KeptEdits(self.folder, points)
        kept.require_readable()
        worker = self.build()
        begun = max((step for step in kept.steps() if step <= total), default=0) if self.plan.keep else 0
        edit: Edit | None = None
        step = 0
        report(0, total)
        for group in groups(self.cases, self.plan.at_once):
            step += len(group)
            if step < begun or not (self.plan.keep or any(case.id not in self.book.after for case in group)):
                continue
            edited: dict[str, Done] = {}
            found = kept.get(worker.lm, step)
            if found is None:
                found, edited = self._edit(worker, group, edit if self.plan.keep else None, step)
                kept.put(found, step)
            edit = found
            self._score(worker, group, edit, edited, step)
            if step in points:
                self._again(worker, self.cases[:step], edit, step)
            report(step, total)

    def _finished(self, points: set[int]) -> bool:
        wanted = [case.id for case in self.cases]
        wanted += [_later(case, step) for step in sorted(points) for case in self.cases[:step]]
        return all(name in self.book.after for name in wanted)

    def _edit(
        self, worker: CaseWorker, group: Sequence[Case], onto: Edit | None, step: int
    ) -> tuple[Edit, dict[str, Done]]:
        """Make a group's Edit; cases that could not be edited are written down at once."""
        edit, done = worker.together(group, onto, self.progress)
        numbers = self._steps(group, step)
        self.book.after.append(
            {**record_of(item, references=None), **numbers(item.case)} for item in done if item.error is not None
        )
        return edit, {item.case.id: item for item in done}

    def _score(
        self, worker: CaseWorker, group: Sequence[Case], edit: Edit, edited: Mapping[str, Done], step: int
    ) -> None:
        missing = [case for case in group if case.id not in self.book.after]
        for some in groups(missing, self.plan.batch):
            results = worker(Job(some, self.book.known(some), edit))
            for done in results:
                if done.case.id in edited:
                    own = edited[done.case.id]
                    done.notes, done.seconds = own.notes, {**own.seconds, **done.seconds}
            self.book.write(results, self._steps(group, step))

    def _again(self, worker: CaseWorker, cases: Sequence[Case], edit: Edit, step: int) -> None:
        """Score all cases so far once more."""
        missing = [case for case in cases if _later(case, step) not in self.book.after]
        for some in groups(missing, self.plan.batch):
            results = worker(Job(some, self.book.known(some), edit))
            self.book.write(results, lambda case: {"id": _later(case, step), "case": case.id, "at": step})

    def _steps(self, group: Sequence[Case], step: int) -> Callable[[Case], Mapping[str, Any]]:
        """Return what says the how-many-th edit a case was, where that matters."""
        if not self.plan.keep:
            return lambda _: {}
        places = {case.id: step - len(group) + place for place, case in enumerate(group, start=1)}
        return lambda case: {"step": places[case.id]}


def _later(case: Case, step: int) -> str:
    return f"{case.id} after {step}"
