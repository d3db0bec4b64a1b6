"""From what was measured before and after an edit to one number per column: pure functions of two `CaseScores`.

`COLUMNS` says of every number which protocol it follows, so that numbers of two protocols are never mixed up.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engram.editing.making import Kind
from engram.editing.thresholds import Thresholds
from engram.editing.verdict import least_shares
from engram.errors import SettingError, did_you_mean
from engram.evaluation import metrics
from engram.evaluation.scores import CaseScores
from engram.evaluation.texts import References
from engram.facts import Case

Average = Literal["mean", "median", "harmonic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table.

    Args:
        key: its name in records.
        label: its name in tables.
        protocol: how the number comes about.
        scale: what tables multiply it by.
        average: how cases are put together ("harmonic": of the means of ES, PS and NS).
        better: whether "higher" or "lower" numbers are better, or "same" as before the edit.
    """

    key: str
    label: str
    protocol: str
    scale: float = 100.0
    average: Average = "mean"
    better: Literal["higher", "lower", "same"] = "higher"


_NLL = "CounterFact: mean token NLL of both targets, teacher-forced"
_ARGMAX = "zsRE: share of target tokens that are the argmax, teacher-forced"
_STRICT = "argmax of the edited model against the unedited one"
_FREE = "free generation, greedy: begins with the target as whole words"
_RULE = "the rule and thresholds of engram check, on the record's own prompts"
_TEXT = "CounterFact: texts sampled with top-k 5, 100 tokens"

COLUMNS: Mapping[str, Column] = {
    column.key: column
    for column in (
        Column(key="S", label="S", protocol=f"{_NLL}; harmonic mean of ES, PS, NS", average="harmonic"),
        Column(key="ES", label="ES", protocol=_NLL),
        Column(key="EM", label="EM", protocol=_NLL),
        Column(key="PS", label="PS", protocol=_NLL),
        Column(key="PM", label="PM", protocol=_NLL),
        Column(key="NS", label="NS", protocol=_NLL),
        Column(key="NM", label="NM", protocol=_NLL),
        Column(key="GE", label="GE", protocol=f"{_TEXT}; n-gram entropy", better="same"),
        Column(key="RS", label="RS", protocol=f"{_TEXT}; TF-IDF cosine with reference texts"),
        Column(
            key="essence",
            label="Essence",
            protocol="CounterFact: perplexity of texts about the subject",
            scale=1.0,
            better="same",
        ),
        Column(key="efficacy", label="Efficacy", protocol=_ARGMAX),
        Column(key="paraphrase", label="Paraphrase", protocol=_ARGMAX),
        Column(key="specificity", label="Specificity", protocol=_ARGMAX),
        Column(key="unchanged", label="Unchanged", protocol=f"{_STRICT}, neighborhood and locality prompts"),
        Column(key="kept", label="Kept", protocol=f"{_STRICT}, other facts of the subject that it knew"),
        Column(key="said", label="Says it", protocol=f"{_FREE}; rewrite prompt"),
        Column(key="said_paraphrase", label="Says it, paraphrased", protocol=f"{_FREE}; paraphrases"),
        Column(key="ok", label="Verdict ok", protocol=_RULE),
        Column(
            key="perplexity", label="Perplexity", protocol="held-out texts, mean over edits", scale=1.0, better="lower"
        ),
        Column(
            key="perplexity_median",
            label="Perplexity (median)",
            protocol="held-out texts, median over edits",
            scale=1.0,
            average="median",
            better="lower",
        ),
    )
}
"""All columns, in the order of tables."""

FIRST_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "counterfact": ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS", "essence"),
    "zsre": ("efficacy", "paraphrase", "specificity"),
}
"""The columns of each published protocol, which a table for such data shows first."""


def column_key(name: str, among: Iterable[str] = COLUMNS) -> str:
    """Return a column's key from its key or its label, in capitals or not.

    Args:
        name: "said", "Says it", "es" ...
        among: the keys to choose from.

    Raises:
        SettingError: there is no such column.
    """
    keys = list(among)
    wanted = name.strip().casefold()
    for key in keys:
        if wanted in (key.casefold(), COLUMNS[key].label.casefold()):
            return key
    known = dict.fromkeys(spelling for key in keys for spelling in (COLUMNS[key].label, key))
    raise SettingError(f"There is no column {name!r}. {did_you_mean(name, known)}")


def verdict(
    case: Case, before: CaseScores, after: CaseScores, *, references: References | None = None
) -> dict[str, float]:
    """Return every column's number for one case, as far as the case has what it needs.

    Args:
        case: what was asked.
        before: scores of the unedited model.
        after: scores under the edit.
        references: TF-IDF weights for RS.
    """
    result = dict(_likelihoods(case, after))
    result |= _hits(after)
    result |= _against_before(before, after)
    target = case.fact.target
    if target and after.rewrite_said:
        result["said"] = float(np.mean([metrics.begins_with(text, target) for text in after.rewrite_said]))
    if target and after.paraphrase_said:
        result["said_paraphrase"] = float(np.mean([metrics.begins_with(t, target) for t in after.paraphrase_said]))
    if after.texts:
        result["GE"] = metrics.fluency(after.texts)
        if references is not None and case.references:
            result["RS"] = references.similarity(after.texts, case.references)
    result |= _ok(result, before, after)
    if after.essence is not None:
        result["essence"] = after.essence
    if after.perplexity is not None:
        result["perplexity"] = result["perplexity_median"] = after.perplexity
    return result


def _likelihoods(case: Case, after: CaseScores) -> Iterator[tuple[str, float]]:
    if case.fact.original is None or not len(after.rewrite):
        return
    yield "ES", metrics.success(after.rewrite)
    yield "EM", metrics.magnitude(after.rewrite)
    if len(after.paraphrase):
        yield "PS", metrics.success(after.paraphrase)
        yield "PM", metrics.magnitude(after.paraphrase)
    if len(after.neighborhood):
        yield "NS", metrics.kept(after.neighborhood)
        yield "NM", metrics.kept_magnitude(after.neighborhood)


def _ok(result: Mapping[str, float], before: CaseScores, after: CaseScores) -> dict[str, float]:
    """Judge a case as `engram check` judges an edit, where it has a paraphrase and a neighbor that was right before."""
    if not {"ES", "PS", "NS"} <= set(result) or len(before.neighborhood) != len(after.neighborhood):
        return {}
    right = before.neighborhood[:, 1] < before.neighborhood[:, 0]
    limits = Thresholds()
    shares: dict[Kind, float] = {"prompt": result.get("said", result["ES"]), "paraphrase": result["PS"]}
    if right.any():
        shares["neighbor"] = float((after.neighborhood[right, 1] < after.neighborhood[right, 0]).mean())
    if "kept" in result:
        shares["other fact"] = result["kept"]
    needed = least_shares(limits)
    gained = (after.neighborhood - before.neighborhood) @ np.array([-1.0, 1.0])
    ok = all(share >= needed[kind] for kind, share in shares.items()) and float(gained.mean()) <= limits.spill
    return {"ok": float(ok)}


def _hits(after: CaseScores) -> dict[str, float]:
    columns = {
        "efficacy": after.rewrite_hits,
        "paraphrase": after.paraphrase_hits,
        "specificity": after.locality_hits,
    }
    return {key: float(np.mean(hits)) for key, hits in columns.items() if hits}


def _against_before(before: CaseScores, after: CaseScores) -> dict[str, float]:
    result: dict[str, float] = {}
    pairs = [([a], [b]) for a, b in zip(before.neighborhood_next, after.neighborhood_next, strict=True)]
    pairs += list(zip(before.locality, after.locality, strict=True))
    if pairs:
        result["unchanged"] = float(np.mean([metrics.same_share(a, b) for a, b in pairs]))
    known = [now for was, now in zip(before.kept_hits, after.kept_hits, strict=True) if was == 1]
    if known:
        result["kept"] = float(np.mean([now == 1 for now in known]))
    return result
