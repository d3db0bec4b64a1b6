"""Edits of many sorts, good and bad, and what CounterFact's own prompts say about each: the truth for `guard.py`.

Every edit is made for a record of its own and kept in a folder, so that a run that ends goes on where it was, and the
check can be measured again without making the edits again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import engram
from engram import datasets
from engram.editing import FT, FTL, ROME, Edit
from engram.editing.methods.rome import PRESETS
from engram.editing.parts.contexts import sample_contexts
from engram.editing.parts.key_statistics import built_in_corpus
from engram.editing.parts.published import PUBLISHED_CLAMP, PUBLISHED_RATE
from engram.evaluation import score_cases
from engram.facts import Case
from engram.models import LM
from engram.stats import KeyStatistics, statistics

PLACES = (1 / 18, 1 / 9, 2 / 9, 1 / 3, 1 / 2)
"""Where ROME writes, as shares of the depth: in a model of 18 layers 1, 2, 4, 6, 9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to make an edit.

    Args:
        method: rome, ft or ft-l.
        place: where, as a share of the depth.
        clamp: ROME's clamp as a share of the published one; the learning rate as a multiple of the default otherwise.
        factor: by how much the finished edit is multiplied.
    """

    method: str
    place: float
    strength: float = 1.0
    factor: float = 1.0

    def name(self, layers: int) -> str:
        """Say it in a few words."""
        more = f" x {self.factor:g}" if self.factor != 1 else ""
        word = "clamp" if self.method == "rome" else "rate"
        return f"{self.method}, layer {round(self.place * layers)}, {self.strength:g} of the {word}{more}"


WAYS = (
    *(Way(method="rome", place=place, strength=1.0) for place in PLACES),
    *(Way(method="rome", place=place, strength=0.25) for place in PLACES[:4]),
    *(Way(method="rome", place=place, strength=0.125) for place in (PLACES[0], PLACES[4])),
    Way(method="rome", place=PLACES[1], strength=0.25, factor=3),
    Way(method="rome", place=PLACES[2], strength=0.25, factor=2),
    Way(method="ft", place=PLACES[0]),
    Way(method="ft-l", place=0),
    Way(method="ft-l", place=PLACES[3], strength=10),
)
"""Sixteen ways: the published strength and weaker ones, at five depths; edits multiplied; fine-tuning."""


def records(lm: LM, data: str, first: int, count: int) -> list[Case]:
    """Return the records to edit; the built-in model has its own."""
    cases = datasets.load("mini" if lm.name == "mini" else data)
    return list(islice(cases, 0 if lm.name == "mini" else first, (0 if lm.name == "mini" else first) + count))


def made(
    lm: LM, cases: Sequence[Case], folder: Path, *, corpus: str | None, tokens: int
) -> Iterator[tuple[Case, Edit, dict[str, Any]]]:
    """Yield every record with its edit and the truth about it, from the folder where they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    counted: KeyStatistics | None = None
    contexts: tuple[str, ...] = ()
    for number, way in enumerate(WAYS):
        some = list(cases[number :: len(WAYS)])
        missing = [case for case in some if not (folder / f"{case.id}.json").is_file()]
        if missing and way.method == "rome" and counted is None:
            layers = sorted({round(w.place * lm.n_layers) for w in WAYS if w.method == "rome"})
            counted = counted_for(lm, layers, corpus, tokens)
            contexts = sample_contexts(lm, PRESETS["rrome"].lengths)
        if missing:
            for case, edit in zip(missing, edits(lm, way, missing, counted, contexts), strict=True):
                edit.save(folder / case.id)
                truth = {"record": case.id, "way": way.name(lm.n_layers), **truth_about(lm, case, edit)}
                (folder / f"{case.id}.json").write_text(json.dumps(truth), encoding="utf-8")
        for case in some:
            truth = json.loads((folder / f"{case.id}.json").read_text(encoding="utf-8"))
            yield case, Edit.load(folder / case.id, lm), truth


def counted_for(lm: LM, layers: Sequence[int], corpus: str | None, tokens: int) -> KeyStatistics:
    """Return key statistics; the built-in model brings its own text."""
    if lm.name == "mini":
        return statistics(lm, layers, built_in_corpus(lm))
    if corpus is None:
        raise SystemExit("ROME on a real model needs --text: a file to count keys on.")
    return statistics(lm, layers, corpus, tokens=tokens)


def edits(
    lm: LM, way: Way, cases: Sequence[Case], counted: KeyStatistics | None, contexts: tuple[str, ...]
) -> list[Edit]:
    """Make one edit per record."""
    layer, facts = round(way.place * lm.n_layers), [case.fact for case in cases]
    if way.method == "rome":
        clamp = way.strength * PUBLISHED_CLAMP
        found = ROME(layer=layer, clamp=clamp, covariance=counted, contexts=contexts).each(lm, facts)
    else:
        method = (
            FT(layer=layer, lr=way.strength * PUBLISHED_RATE) if way.method == "ft" else _limited(layer, way.strength)
        )
        found = [engram.edit(lm, fact, method, force=True, verify=False) for fact in facts]
    return [way.factor * edit for edit in found]


def _limited(layer: int, strength: float) -> FTL:
    """Return FT+L with rate and bound multiplied."""
    return FTL(layer=layer, lr=strength * PUBLISHED_RATE, bound=5e-4 * strength)


def truth_about(lm: LM, case: Case, edit: Edit) -> dict[str, Any]:
    """Return ES, PS and NS before and after, in percent."""
    before, after = (scores(lm, case, under) for under in (None, edit))
    return {"before": before, "after": after}


def scores(lm: LM, case: Case, edit: Edit | None) -> dict[str, float]:
    """Return ES, PS and NS of one record, in percent."""
    (found,) = score_cases(lm, [case], [edit])
    return {
        "ES": 100 * float((found.rewrite[:, 1] > found.rewrite[:, 0]).mean()),
        "PS": 100 * float((found.paraphrase[:, 1] > found.paraphrase[:, 0]).mean()),
        "NS": 100 * float((found.neighborhood[:, 1] < found.neighborhood[:, 0]).mean()),
    }


def bad(truth: dict[str, Any]) -> bool:
    """Say whether an edit misses its paraphrases or moves its neighbors: what a verdict must not let through."""
    before, after = truth["before"], truth["after"]
    return after["ES"] < 50 or after["PS"] < 50 or before["NS"] - after["NS"] > 20
