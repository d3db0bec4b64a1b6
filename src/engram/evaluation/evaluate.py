"""`evaluate`: every case is edited, scored and undone; results are appended to a run folder and survive anything.

Cases are done in batches of the data set's order. A batch that was not finished is done again as a whole, so that an
interrupted run and an uninterrupted one see the same batches and give the same table.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engram.datasets import Dataset
from engram.datasets import load as load_data
from engram.datasets.dataset import groups
from engram.editing import METHODS, Method
from engram.editing.methods import method_kind
from engram.editing.parts.editor import Editor
from engram.editing.tuned import tuned
from engram.errors import DataError, SettingError, did_you_mean
from engram.evaluation.editors import Unedited, counted, in_chat, method_of, prepared, settled
from engram.evaluation.measuring import Scoring
from engram.evaluation.records import circumstances, record_of, recorded_method, settings_of
from engram.evaluation.report import Report, Run
from engram.evaluation.scores import CaseScores
from engram.evaluation.sequential import CHECKPOINTS, evaluate_sequentially
from engram.evaluation.texts import References
from engram.evaluation.work import CaseWorker, Job, Portable
from engram.facts import Case
from engram.given import require_each, require_lm
from engram.models.chat import wrap_for
from engram.progress import AnyProgress, Doing, Progress, named, progress_for
from engram.runs import Engine, Local, MemoryStore, RunStore, Store, engine_named
from engram.settings import settings as settings_of_kind

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

CASES = Doing("editing and scoring", unit="cases")
Data = Dataset | str | Path | Iterable[Case]
PROTOCOLS = ("sequential", "single")


def evaluate(
    lm: "LM",
    data: Data,
    *,
    method: str | Method = "rome",
    out: str | Path | None = None,
    protocol: Literal["single", "sequential"] | str = "single",
    batch: int = 1,
    scoring: Scoring | None = None,
    generate: bool = True,
    held_out: Sequence[str] = (),
    tfidf: str | Path | None = None,
    seed: int = 0,
    chat: bool = False,
    checkpoints: Sequence[int] = CHECKPOINTS,
    engine: str | Engine = "local",
    progress: AnyProgress | None = None,
    **settings: Any,
) -> Report:
    """Edit every case, score it, undo it; or, with the protocol "sequential", leave the edits in the model.

    Args:
        lm: the model; as before afterwards, bit for bit.
        data: a `Dataset`, cases, a file, or a data set's name.
        method: a method's name, "none" for the unedited model, or a method with its settings.
        out: a folder for the results. A run that was interrupted is continued; the unedited model's scores go beside
            it (`unedited-...`) and are shared by all runs there. In memory only when not given.
        protocol: "single" undoes each edit; "sequential" piles them up and scores earlier ones again at checkpoints.
        batch: cases edited and scored together, and lost together in a kill; results do not depend on it.
        scoring: what is measured, instead of the following four.
        generate: write texts (GE, RS): most of the time.
        held_out: texts whose perplexity is measured under every edit.
        tfidf: folder of the published TF-IDF weights (idf.npy, tfidf_vocab.json) for RS; fitted on the data set's own
            reference texts when not given.
        seed: for texts, and for the method where it is given by name and has one.
        chat: ask every prompt, and edit, within the tokenizer's chat template; so is a method that has `chat` set.
        checkpoints: after how many edits earlier ones are scored again (sequential only); the last edit is always one.
        engine: "local", or an engine of `engram.runs` such as `Ray(workers=4, gpus_per_worker=1)`.
        progress: told what is done, how much, and how much there is; or (done, total) cases; the log when not given.
        **settings: the method's settings, when it is given by name.

    Returns:
        A report of the unedited model and of this run.

    Raises:
        SettingError: an unknown method, protocol, engine or setting.
        TokenizerError: `chat` on a model without a chat template.
        DataError: a broken data file.
        RunError: a run folder of other settings, in use, or a full disk.
    """
    require_lm(lm)
    dataset = dataset_of(data)
    how = scoring or Scoring(generate=generate, seed=seed, held_out=tuple(held_out))
    chosen, notes = settled(lm, method_of(method, _seeded(method, settings, seed)))
    how, chosen = _asked_alike(lm, how, chosen, chat=chat)
    place, tell = _checked(protocol, batch, engine), progress_for(progress, CASES)
    ready = counted(lm, chosen, before=recorded_method(out), progress=tell)
    task = _Task(lm, dataset, ready, how, out, tfidf, place, batch, tell)
    report = task.sequential(checkpoints) if protocol == "sequential" else task.single()
    return replace(report, notes=(*notes, *seen_in_tuning(lm, report)))


def _asked_alike(lm: "LM", how: Scoring, method: Method, *, chat: bool) -> tuple[Scoring, Method]:
    """Ask and edit within the chat template, or neither; a model without one is refused before anything runs."""
    if not (chat or how.chat or (isinstance(method, Editor) and method.chat)):
        return how, method
    wrap_for(lm, chat=True)
    return replace(how, chat=True), in_chat(method)


def _checked(protocol: str, batch: int, engine: str | Engine) -> Engine:
    if protocol not in PROTOCOLS:
        raise SettingError(f"There is no protocol {protocol!r}. {did_you_mean(protocol, PROTOCOLS)}")
    if batch < 1:
        raise SettingError(f"batch={batch}; it must be 1 or more.")
    place = engine_named(engine)
    if protocol == "sequential" and not isinstance(place, Local):
        raise SettingError("Sequential edits depend on each other, so they need the engine 'local'.")
    return place


@dataclass(frozen=True, slots=True)
class _Task:
    """What `evaluate` was asked to do."""

    lm: "LM"
    dataset: Dataset
    method: Method
    scoring: Scoring
    out: str | Path | None
    tfidf: str | Path | None
    engine: Engine
    batch: int
    progress: Progress

    def single(self) -> Report:
        """Undo each edit before the next."""
        wanted = self._settings(self.dataset, self.method, "single")
        with self._stores(wanted) as (unedited, before, after):
            _single(self, before, after, _references(self.dataset, self.scoring, self.tfidf))
            return _report(self.dataset, self.out, unedited, before, wanted, after)

    def sequential(self, checkpoints: Sequence[int]) -> Report:
        """Leave each edit below the next."""
        wanted = self._settings(self.dataset, self.method, "sequential", checkpoints=list(checkpoints))
        with self._stores(wanted) as (unedited, before, after):
            evaluate_sequentially(
                self.lm,
                list(self.dataset),
                self.method,
                self.scoring,
                before=before,
                after=after,
                references=_references(self.dataset, self.scoring, self.tfidf),
                checkpoints=checkpoints,
                folder=None if self.out is None else Path(self.out),
                progress=named(self.progress, CASES),
            )
            return _report(self.dataset, self.out, unedited, before, wanted, after)

    def _settings(self, dataset: Dataset, method: Method, protocol: str, **more: Any) -> dict[str, Any]:
        weights = None if self.tfidf is None else str(self.tfidf)
        return settings_of(self.lm, dataset, method, self.scoring, protocol, tfidf=weights, **more)

    @contextmanager
    def _stores(self, wanted: dict[str, Any]) -> Generator[tuple[dict[str, Any], Store, Store]]:
        """Open the stores of the unedited model, with its settings, and of this run."""
        unedited = self._settings(self.dataset.everything(), Unedited(), "single")
        if self.out is None:
            yield unedited, MemoryStore(), MemoryStore()
            return
        mark = hashlib.sha256(json.dumps(unedited, sort_keys=True).encode()).hexdigest()[:8]
        beside = Path(self.out).parent / f"unedited-{mark}"
        here = circumstances()
        with (
            RunStore(self.out, wanted, circumstances=here) as after,
            RunStore(beside, unedited, circumstances=here, shared=True) as before,
        ):
            yield unedited, before, after


def _single(task: _Task, before: Store, after: Store, references: References | None) -> None:
    batches = list(groups(task.dataset, task.batch))
    total = sum(len(cases) for cases in batches)
    finished = sum(case.id in after for cases in batches for case in cases)
    report = named(task.progress, CASES)
    report(finished, total)
    if finished == total:
        return
    worker = CaseWorker(task.lm, prepared(task.lm, task.method), task.scoring)
    with _workers(worker, task.engine) as build:
        for results in task.engine.run(build, _jobs(batches, before, after)):
            before.append(record_of(done, references=references, when="before") for done in results if done.before)
            new = [done for done in results if done.case.id not in after]
            after.append(record_of(done, references=references) for done in new)
            finished += len(new)
            report(finished, total)


def _jobs(batches: Sequence[tuple[Case, ...]], before: Store, after: Store) -> Iterator[Job]:
    for cases in batches:
        if all(case.id in after for case in cases):
            continue
        yield Job(cases, known_scores(cases, before))


def known_scores(cases: Iterable[Case], before: Store) -> dict[str, CaseScores]:
    """Return the unedited model's scores of cases, where they are known."""
    records = {case.id: before.get(case.id) for case in cases}
    return {
        name: CaseScores.from_plain(record["scores"])
        for name, record in records.items()
        if record is not None and "scores" in record
    }


@contextmanager
def _workers(worker: CaseWorker, engine: Engine) -> Generator[Callable[[], Any]]:
    """Give what makes workers. For other processes the model waits on the CPU, from where it can travel.

    Raises:
        SettingError: the model is spread over several devices and cannot travel.
    """
    lm = worker.lm
    if isinstance(engine, Local):
        yield lambda: worker
        return
    if getattr(lm.model, "hf_device_map", None):
        raise SettingError(f"{lm.name} is spread over devices by device_map; workers need a model on one device.")
    device = lm.device
    lm.model.to("cpu")
    try:
        yield Portable(worker, device.type)
    finally:
        lm.model.to(device)


def dataset_of(data: Data) -> Dataset:
    """Return data in any of its forms as a data set.

    Raises:
        DataError: two of the cases that were given have the same id.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | Path):
        return load_data(data)
    cases = require_each(data, Case, "data")
    for name, many in Counter(case.id for case in cases).items():
        if many > 1:
            raise DataError(f"{many} cases have the id {name!r}; results are kept by id, so give each case its own.")
    plain = json.dumps([asdict(case) for case in cases], ensure_ascii=False)
    identity = hashlib.sha256(plain.encode()).hexdigest()[:16]
    return Dataset("cases", "counterfact", identity, lambda: cases)


def _seeded(method: str | Method, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    takes = isinstance(method, str) and method in METHODS and "seed" in settings_of_kind(method_kind(method))
    return {"seed": seed, **settings} if takes else settings


def _references(dataset: Dataset, scoring: Scoring, tfidf: str | Path | None) -> References | None:
    if not scoring.generate:
        return None
    if tfidf is not None:
        return References.published(tfidf)
    return References.fitted(text for case in dataset.everything() for text in case.references)


def seen_in_tuning(lm: "LM", report: Report) -> tuple[str, ...]:
    """Return a sentence where a run's numbers were tuned on some of its own records."""
    run = report.runs[-1]
    how = run.settings["method"]
    found = tuned(lm, how["name"])
    if found is None or found.digest != run.settings["data"]["digest"]:
        return ()
    if any(how.get(name) != value for name, value in found.best.settings.items()):
        return ()
    same = {str(record["id"]) for record in run.records}.intersection(found.cases)
    if not same:
        return ()
    return (
        f"{len(same)} of these {len(run.records)} records were used to tune the method; leave them out of a table "
        f"that compares it (skip={len(found.cases)}, --skip {len(found.cases)}).",
    )


def _report(
    dataset: Dataset,
    out: str | Path | None,
    unedited: dict[str, Any],
    before: Store,
    wanted: dict[str, Any],
    after: Store,
) -> Report:
    name = wanted["method"]["name"] if out is None else Path(out).name
    run = Run(name, wanted, after.records(), skipped=len(dataset.skipped))
    ids = {str(record["id"]) for record in run.records}
    plain = Run("unedited", unedited, [r for r in before.records() if str(r["id"]) in ids])
    return Report([run] if wanted["method"]["name"] == "none" else [plain, run])
