"""`evaluate`: cases are edited, scored and undone; results are appended to a run folder and survive anything.

The loop itself is in `engram.evaluation.loop`. Cases are done in the data set's order; a batch that was not finished is
done again as a whole, so that an interrupted run and an uninterrupted one see the same batches and give the same table.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
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
from engram.errors import DataError, SettingError
from engram.evaluation.editors import Unedited, counted, in_chat, method_of, prepared, settled
from engram.evaluation.loop import CASES, CHECKPOINTS, Book, Plan, Together, one_by_one
from engram.evaluation.measuring import Scoring
from engram.evaluation.records import circumstances, recorded_method, settings_of
from engram.evaluation.report import Report, Run
from engram.evaluation.texts import References
from engram.evaluation.work import CaseWorker, Portable
from engram.facts import Case
from engram.given import require_each, require_lm
from engram.models.chat import wrap_for
from engram.progress import AnyProgress, Progress, progress_for
from engram.runs import Engine, Local, MemoryStore, RunStore, Store, engine_named
from engram.settings import settings as settings_of_kind

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

Data = Dataset | str | Path | Iterable[Case]


def evaluate(
    lm: "LM",
    data: Data,
    *,
    method: str | Method = "rome",
    out: str | Path | None = None,
    protocol: Literal["single", "sequential"] | str | None = None,
    at_once: int = 1,
    keep: bool = False,
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
    """Edit cases, score them, undo the Edit or go on from it; return a report of the unedited model and of this run.

    Args:
        lm: the model; as before afterwards, bit for bit.
        data: a `Dataset`, cases, a file, or a data set's name.
        method: a method's name, "none" for the unedited model, or a method with its settings.
        out: a folder for the results, where an interrupted run is continued; the unedited model's scores go beside it
            and are shared by all runs there. In memory only when not given.
        protocol: short forms: "single" is `at_once=1, keep=False`, as is nothing; "sequential" is `keep=True`.
        at_once: how many cases one Edit holds, under which all of them are scored.
        keep: go on from each Edit instead of undoing it; with `out` it is kept there (`edit-N` after N cases).
        batch: cases scored together, and lost together in a kill; results do not depend on it.
        scoring: what is measured, instead of the following four.
        generate: write texts (GE, RS): most of the time.
        held_out: texts whose perplexity is measured under every edit.
        tfidf: folder of the published TF-IDF weights for RS; fitted on the data set's reference texts when not given.
        seed: for texts, and for the method where it is given by name and has one.
        chat: ask every prompt, and edit, within the tokenizer's chat template; so is a method that has `chat` set.
        checkpoints: after how many edits earlier ones are scored again (with `keep`); the last edit is always one.
        engine: "local", or an engine of `engram.runs` such as `Ray(workers=4, gpus_per_worker=1)`.
        progress: told what is done, how much, and how much there is; or (done, total) cases; the log when not given.
        **settings: the method's settings, when it is given by name.

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
    plan = Plan.of(protocol, at_once, keep, batch=batch, checkpoints=tuple(checkpoints))
    place, tell = _engine_for(plan, engine), progress_for(progress, CASES)
    ready = counted(lm, chosen, before=recorded_method(out), progress=tell)
    report = _Task(lm, dataset, ready, how, out, tfidf, place, plan, tell).run()
    return replace(report, notes=(*notes, *seen_in_tuning(lm, report)))


def _asked_alike(lm: "LM", how: Scoring, method: Method, *, chat: bool) -> tuple[Scoring, Method]:
    """Ask and edit within the chat template, or neither; a model without one is refused before anything runs."""
    if not (chat or how.chat or (isinstance(method, Editor) and method.chat)):
        return how, method
    wrap_for(lm, chat=True)
    return replace(how, chat=True), in_chat(method)


def _engine_for(plan: Plan, engine: str | Engine) -> Engine:
    place = engine_named(engine)
    if not (plan.alone or isinstance(place, Local)):
        why = "Edits that go on from each other" if plan.keep else "Edits of many cases"
        raise SettingError(f"{why} are made in one process, so they need the engine 'local'.")
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
    plan: Plan
    progress: Progress

    def run(self) -> Report:
        """Do what is missing, and report on everything."""
        wanted = self._settings(self.dataset, self.method, self.plan.protocol, **self.plan.describe())
        with self._stores(wanted) as (unedited, before, after):
            book = Book(before, after, _references(self.dataset, self.scoring, self.tfidf))
            if self.plan.alone:
                batches = list(groups(self.dataset, self.plan.batch))
                one_by_one(batches, book, self.engine, self._workers, self.progress)
            else:
                folder = None if self.out is None else Path(self.out)
                Together(list(self.dataset), self.plan, book, self._worker, folder, self.progress).run()
            return _report(self.dataset, self.out, unedited, before, wanted, after)

    def _worker(self) -> CaseWorker:
        return CaseWorker(self.lm, prepared(self.lm, self.method), self.scoring)

    def _workers(self) -> AbstractContextManager[Callable[[], Any]]:
        return _workers(self._worker(), self.engine)

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
