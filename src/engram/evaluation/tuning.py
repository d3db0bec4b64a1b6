"""`tune`: the one or two numbers that decide what a method does to a model, found by editing and scoring records.

What is tuned, and over which values, says `engram.editing.parts.published.TUNABLE`; which candidate is done on how many
records, `engram.evaluation.halving`. Each edit's result is a line in a run folder: a search that was killed goes on.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram._version import __version__
from engram.datasets import Dataset, known
from engram.datasets import load as load_data
from engram.editing import Method
from engram.editing.methods import method_kind
from engram.editing.parts.editor import Editor
from engram.editing.parts.published import TUNABLE, Tunable, chosen, untuned
from engram.editing.parts.value_editor import ValueEditor
from engram.editing.tuned import Tuned, keep_tuned, tuned_file
from engram.errors import DataError, SettingError, did_you_mean
from engram.evaluation.editors import method_of
from engram.evaluation.evaluate import Data, dataset_of
from engram.evaluation.halving import Candidate, combinations, edits_needed, halve
from engram.evaluation.measuring import LIKELIHOODS
from engram.evaluation.records import circumstances, settings_of
from engram.evaluation.trials import Trials, named
from engram.facts import Case
from engram.progress import AnyProgress, progress_for
from engram.runs import RunStore
from engram.settings import settings as settings_of_kind
from engram.stats import KeyStatistics

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

RECORDS = 24
"""Records that a method is tuned on, unless told otherwise: enough to part settings by some ten points of S."""


def tune(
    lm: "LM",
    data: Data | None = None,
    *,
    method: str = "rome",
    records: int = RECORDS,
    out: str | Path | None = None,
    keep: bool = True,
    progress: AnyProgress | None = None,
    seed: int = 0,
    **settings: Any,
) -> Tuned:
    """Find the numbers that suit a method to a model, and keep them: every later edit of the model uses them.

    The score is S against the unedited model: the harmonic mean of ES, PS and NS / NS of the unedited model (at most
    1), each the mean over the records. A candidate is tried on few records first and on all of them in the end
    (`engram.evaluation.halving`). Equal scores are parted by the probabilities behind them (EM + PM + NM). An edit that
    fails counts as one that changed nothing. What the method would use untuned is tried on all records, too, and stays
    unless the first candidate, partly the luckiest, beats it by more than the 95 % interval of their difference.

    Args:
        lm: the model; as before afterwards, bit for bit.
        data: records with paraphrases and neighborhoods: a `Dataset`, cases, a file, or a data set's name. The first
            `records` of them are used, and should then be left out of any table. When not given, `mini` uses its own
            records, and other models what they are shown to know (`engram.datasets.known`).
        method: "rome", "ft" or "ft-l".
        records: how many records.
        out: folder of the results, from which an interrupted run goes on; in the cache when not given.
        keep: use the numbers from now on.
        progress: told what is being tried, how many edits are done, and about how many there will be.
        seed: for what is drawn at random.
        **settings: the method's settings; for a number that is tuned what to try, as in `layer=[0, 1], clamp=1.0`.

    Raises:
        SettingError: an unknown method or setting, or a preset that stands for published numbers.
        DataError: no record has all that the score needs.
        RunError: a folder of other settings, or in use.
    """
    made, values, usual = _request(lm, method, seed, settings)
    dataset = _data_for(lm, records, seed) if data is None else dataset_of(data)
    cases = _usable(dataset, records)
    scoring = replace(LIKELIHOODS, chat=isinstance(made, Editor) and made.chat)
    wanted = settings_of(lm, dataset, made, scoring, "tuning", records=len(cases))
    place = Path(out) if out is not None else _in_cache(lm, method, wanted)
    with RunStore(place, wanted, circumstances=circumstances()) as store:
        found = _search(Trials(lm, made, cases, scoring, store, progress_for(progress)), values, usual)
    tuned = Tuned(
        method=method,
        **found,
        data=dataset.name,
        digest=dataset.digest,
        cases=tuple(case.id for case in cases),
        model=lm.name,
        fingerprint=lm.fingerprint,
        date=datetime.now(UTC).date().isoformat(),
        version=__version__,
    )
    if keep and tuned.best.score > 0:
        keep_tuned(lm, tuned)
    return tuned


def _request(lm: "LM", method: str, seed: int, settings: Mapping[str, Any]) -> tuple[Method, Tunable, Candidate]:
    """Return the method without the numbers that are tuned, the values to try for these, and the usual ones."""
    if method not in TUNABLE:
        raise SettingError(f"There is nothing to tune for {method!r}. {did_you_mean(method, TUNABLE)}")
    if settings.get("preset") not in (None, "rrome", "teacher"):
        raise SettingError("The other presets stand for published numbers; only the method's own preset is tuned.")
    usual = untuned(lm, method)
    values = _values(TUNABLE[method](lm.n_layers), usual, settings)
    for layer in values.together["layer"]:
        chosen(lm, method, layer=layer)  # refuses one that the model does not have
    fixed = {name: value for name, value in settings.items() if name not in usual}
    made = method_of(method, {**fixed, **({"seed": seed} if "seed" in settings_of_kind(method_kind(method)) else {})})
    return made, _with_statistics(values, made), usual


def _values(values: Tunable, usual: Candidate, settings: Mapping[str, Any]) -> Tunable:
    """Put what the user wants to try in the place of the usual values."""
    given = {name: _listed(settings[name]) for name in usual if settings.get(name) is not None}
    together = {name: given.get(name, some) for name, some in values.together.items()}
    then = {name: given.get(name, some) for name, some in values.then.items()}
    start = {name: given[name][0] if name in given else values.start.get(name, usual[name]) for name in then}
    return Tunable(together=together, then=then, start=start)


def _listed(value: Any) -> tuple[int | float, ...]:
    found = tuple(value) if isinstance(value, Sequence) else (value,)
    if not found or not all(isinstance(v, int | float) and v >= 0 for v in found):
        raise SettingError(f"{value!r} is no number to try, and no list of such.")
    return found


def _with_statistics(values: Tunable, method: Method) -> Tunable:
    """Try only layers that have key statistics, where these were given."""
    given = method.covariance if isinstance(method, ValueEditor) else None
    counted = KeyStatistics.load(given) if isinstance(given, str | Path) else given
    known_layers = counted.layers if isinstance(counted, KeyStatistics) else counted
    if not isinstance(known_layers, Mapping):
        return values
    layers = [layer for layer in values.together["layer"] if layer in known_layers]
    if not layers:
        raise SettingError(f"The statistics have the layers {sorted(known_layers)}; none of these is to be tried.")
    return replace(values, together={**values.together, "layer": layers})


def _data_for(lm: "LM", records: int, seed: int) -> Dataset:
    """Return the records for a model that came without any."""
    return load_data("mini") if lm.name == "mini" else known(lm, count=records, seed=seed)


def _usable(dataset: Dataset, count: int) -> list[Case]:
    """Return the first records that have all that the score needs.

    Raises:
        DataError: there is none.
    """
    if count < 1:
        raise SettingError(f"records={count}; it must be 1 or more.")
    cases = (c for c in dataset if c.fact.target and c.fact.original and c.paraphrases and c.neighborhood)
    found = list(islice(cases, count))
    if not found:
        raise DataError(
            f"No record of {dataset.name} has an original answer, paraphrases and a neighborhood; tuning needs all "
            "three, because an edit can be had at the cost of everything else."
        )
    return found


def _in_cache(lm: "LM", method: str, wanted: Mapping[str, Any]) -> Path:
    mark = hashlib.sha256(json.dumps(wanted, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return tuned_file(lm, method).with_name(f"{method}-{mark}")


def _search(trials: Trials, values: Tunable, usual: Candidate) -> dict[str, Any]:
    """Return the best candidate, the usual one, and all that were tried, as fields of a `Tuned`."""
    pool, total = combinations(values.together, values.start), len(trials.cases)
    trials.layers = sorted({int(layer) for layer in (*values.together["layer"], usual["layer"])})
    trials.total = edits_needed(pool, values.then, total) + total
    counts: dict[str, tuple[Candidate, int]] = {}

    def rank(some: Sequence[Candidate], count: int) -> list[Candidate]:
        for candidate in some:
            trials.run(candidate, count)
            counts[named(candidate)] = candidate, count
        return sorted(some, key=lambda candidate: trials.key(candidate, count), reverse=True)

    last = halve(pool, values.then, total, rank)
    first, *_ = rank([*last, *([] if named(usual) in map(named, last) else [usual])], total)
    best = first if trials.beats(first, usual) else usual
    tried = sorted(counts.values(), key=lambda item: (item[1], trials.key(*item)), reverse=True)
    return {
        "best": trials.tried(best, total),
        "usual": trials.tried(usual, total),
        "tried": tuple(trials.tried(*item) for item in tried),
        "unedited": trials.unedited(),
    }
