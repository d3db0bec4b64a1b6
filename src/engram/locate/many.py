"""Locating many facts: averages over those that a model knows, in runs that survive."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engram._version import __version__
from engram.errors import DataError, FactError, SettingError
from engram.facts import Case, Fact
from engram.given import require_each, require_lm
from engram.locate.grid import Grid
from engram.locate.groups import GROUPS
from engram.locate.locator import Locator, locator_of
from engram.models.continuations import asked
from engram.progress import AnyProgress, Doing, Progress, progress_for
from engram.runs.store import MemoryStore, Record, RunStore, Store
from engram.settings import plain

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

FACTS = Doing("locating facts", unit="facts")


def locate_many(
    lm: "LM",
    facts: Iterable[Fact | Case],
    *,
    by: str | Locator = "tracing",
    out: str | Path | None = None,
    progress: AnyProgress | None = None,
    **settings: Any,
) -> Grid:
    """Locate facts and average their effects: a grid with one sample per fact.

    Over tokens, the tokens of a group (first subject token, ..., last token) are averaged first, within each fact. A
    fact that names an `original` counts only if the model gives its first token; one that does not is taken as what the
    model says. With `out`, every fact is on the disk when it is done: the same call continues a run that was
    interrupted, and a call with more facts adds them.

    Args:
        lm: the model.
        facts: facts or cases.
        by: a name out of `LOCATORS`, or a locator.
        out: the run's folder (`run.json`, `results.jsonl`); nothing is written when not given.
        progress: a function of (what, done, total), or of (done, total) facts; the log when not given.
        **settings: of the locator, where it is given by name.

    Raises:
        SettingError: unknown locator or setting, a value that is not allowed, or grids that have no mean.
        RunError: the folder belongs to other settings or another model, or is in use.
        DataError: the model knows none of the facts.
        NumericalError: NaN or infinity in the model's output.
    """
    require_lm(lm)
    given = require_each(facts, (Fact, Case), "facts")
    locator, tell = locator_of(by, settings), progress_for(progress, FACTS)
    described = {"locator": by if isinstance(by, str) else type(by).__name__, **plain(locator, every=True)}

    def one(fact: Fact) -> Record:
        return _kept(locator(lm, fact, progress=tell))

    records = over_facts(lm, given, one, described, out=out, tell=tell, doing=FACTS, done="located")
    found = [_grid_of(record) for record in records if record["status"] == "located"]
    dropped, failed = (sum(r["status"] == status for r in records) for status in ("unknown", "failed"))
    if not found:
        raise DataError(
            f"None of {len(records)} fact(s) could be averaged; {lm.name} does not know {dropped}. "
            f"Give facts that it answers rightly."
        )
    notes = [f"{len(found)} facts, {dropped} dropped that {lm.name} does not know"]
    return averaged(found, [f"{notes[0]}, {failed} failed" if failed else notes[0]])


def over_facts(
    lm: "LM",
    facts: Sequence[Fact | Case],
    one: Callable[[Fact], Record],
    described: Mapping[str, Any],
    *,
    out: str | Path | None,
    tell: Progress,
    doing: Doing,
    done: str,
    worded: Callable[[Fact], Fact] = lambda fact: fact,
) -> list[Record]:
    """Do something with every fact that a model knows, and keep what comes of it; return the records of these facts.

    Args:
        lm: the model.
        facts: facts or cases.
        one: what is done, and what is kept of it.
        described: the settings that a run's folder belongs to.
        out: the run's folder.
        tell: told how many facts are done.
        doing: what this is called.
        done: the status of a fact with which it was done; the others are "unknown" and "failed".
        worded: puts a fact into a chat template, for asking whether the model knows it.
    """
    wanted = {_name(fact): fact for fact in (f.fact if isinstance(f, Case) else f for f in facts)}
    circumstances = {"model": lm.name, "engram": __version__, "torch": torch.__version__, "device": str(lm.device)}
    with ExitStack() as stack:
        store: Store = MemoryStore()
        if out is not None:
            belongs = {**described, "model": lm.fingerprint}
            store = stack.enter_context(RunStore(out, belongs, circumstances=circumstances))
        for count, (name, fact) in enumerate(wanted.items()):
            tell(doing, count, len(wanted))
            if name not in store:
                base = {"id": name, "prompt": fact.text, "subject": fact.subject, "original": fact.original}
                store.append([{**base, **_outcome(lm, fact, one, done, worded)}])
        tell(doing, len(wanted), len(wanted))
        return [record for record in store.records() if record["id"] in wanted]


def _outcome(lm: "LM", fact: Fact, one: Callable[[Fact], Record], done: str, worded: Callable[[Fact], Fact]) -> Record:
    try:
        return {"status": done, **one(fact)} if _known(lm, worded(fact)) else {"status": "unknown"}
    except FactError as error:
        logger.warning("%r was left out: %s", fact.text, error)
        return {"status": "failed", "reason": str(error)}


@torch.no_grad()
def _known(lm: "LM", fact: Fact) -> bool:
    """Say whether the model gives the first token of the answer that a fact names; one without an answer counts."""
    prompt = asked(lm, fact)
    if prompt.answer is None:
        return True
    logits = lm.forward(prompt.ids, keep=1)[0, -1]
    lm.require_finite(logits, "In the clean run the output")
    return int(logits.argmax()) == prompt.answer


def _name(fact: Fact) -> str:
    parts = [fact.subject, fact.prompt, fact.original, fact.target]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def averaged(grids: Sequence[Grid], notes: Iterable[str] = ()) -> Grid:
    """Average the effects of several grids, one sample each; over tokens first their groups are averaged.

    Args:
        grids: of different facts, made by the same settings.
        notes: what people should know about the whole.

    Raises:
        SettingError: the grids have different axes, or different places on an axis other than "token".
    """
    each = [grid.grouped() for grid in grids]
    first = each[0]
    axis = first.axes.index("token") if "token" in first.axes else len(first.axes)
    for grid in each:
        if grid.axes != first.axes or _but(grid.labels, axis) != _but(first.labels, axis):
            raise SettingError("Only grids over the same places have a mean; these differ in their axes or labels.")
    names: tuple[str, ...] = ()
    if axis < len(first.axes):
        names = tuple(name for name in GROUPS if any(name in grid.labels[axis] for grid in each))
        first = replace(_aligned(first, axis, names), groups={name: (i,) for i, name in enumerate(names)})
    return replace(
        first,
        values=torch.stack([_aligned(grid, axis, names).effect for grid in each], dim=-1),
        baseline=torch.zeros(()),
        marked=tuple(i for i, name in enumerate(names) if "subject" in name),
        text="",
        quantity="mean over facts",
        notes=tuple(notes),
    )


def _but(labels: Sequence[tuple[str, ...]], axis: int) -> list[tuple[str, ...]]:
    return [each for i, each in enumerate(labels) if i != axis]


def _aligned(grid: Grid, axis: int, names: Sequence[str]) -> Grid:
    """Return a grid with one row for each of the groups; NaN for those that it has not."""
    if axis >= len(grid.axes):
        return grid
    rows = dict(zip(grid.labels[axis], grid.values.unbind(axis), strict=True))
    missing = torch.full_like(grid.values.select(axis, 0), float("nan"))
    labels = (*grid.labels[:axis], tuple(names), *grid.labels[axis + 1 :])
    return replace(grid, values=torch.stack([rows.get(name, missing) for name in names], dim=axis), labels=labels)


def _kept(grid: Grid) -> Record:
    """Return what a run keeps of a grid: its effects, over groups of tokens."""
    small = grid.grouped().to_dict()
    wanted = ("axes", "labels", "effect", "titles", "groups", "model", "settings")
    return {name: small[name] for name in wanted}


def _grid_of(record: Record) -> Grid:
    values: Tensor = torch.from_numpy(np.array(record["effect"], dtype=np.float32)).unsqueeze(-1)
    return Grid(
        values=values,
        axes=tuple(record["axes"]),
        labels=tuple(tuple(labels) for labels in record["labels"]),
        titles=record["titles"],
        groups={name: tuple(rows) for name, rows in record["groups"].items()},
        model=record["model"],
        settings=record["settings"],
    )
