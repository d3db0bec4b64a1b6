"""zsRE, known facts, WISE's two sets, and `mini`'s own records."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from engram.datasets.counterfact import original_case
from engram.datasets.dataset import Dataset, Selection, Skipped
from engram.datasets.files import Row, digest, require_file, rows, validated
from engram.datasets.schemas import KnownRecord, WiseRecord, ZsreRecord, fact_or_skip
from engram.errors import SettingError, did_you_mean
from engram.facts import Case

Make = Callable[[Row], Case | Skipped]


def from_file(path: str | Path, protocol: str, make: Make, selection: Selection) -> Dataset:
    """Return the data set of a file, given how one record becomes a case."""
    file = require_file(path)

    def read() -> Iterator[Case | Skipped]:
        for row in rows(file):
            yield make(row)

    return Dataset(file.stem, protocol, digest(file), read, selection)


def zsre(
    path: str | Path,
    *,
    target: Literal["alt", "answer"] = "alt",
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skip_unknown: Any = None,
) -> Dataset:
    """Read zsRE (`zsre_mend_eval`, PROTOCOL §5): one rephrasing, and an unrelated question as locality prompt.

    Args:
        path: the JSON file.
        target: `"alt"` edits in another answer than the true one; `"answer"` teaches the first true answer, as the
            ROME repository's own loader does. The unrelated question gets its "?" as there.
        limit: only the first so many cases.
        sample: only so many, drawn at random.
        seed: for the draw.
        skip_unknown: a model; leave out facts that it does not know.

    Raises:
        DataError: the file is missing, broken or of another format (found out while reading).
        SettingError: an unknown `target`.
    """
    if target not in ("alt", "answer"):
        raise SettingError(f"There is no zsRE target {target!r}. {did_you_mean(target, ('alt', 'answer'))}")

    def make(row: Row) -> Case | Skipped:
        record, name = validated(ZsreRecord, row), str(row.number)
        wanted, original = (record.alt, record.answers[0]) if target == "alt" else (record.answers[0], None)
        if not wanted.strip():
            return Skipped(name, row.where, f"{target} is empty, so there is nothing to edit in")
        fact = fact_or_skip(row, name, subject=record.subject, prompt=record.src, target=wanted, original=original)
        if isinstance(fact, Skipped):
            return fact
        return Case(id=name, fact=fact, paraphrases=(record.rephrase,), locality=((f"{record.loc}?", record.loc_ans),))

    dataset = from_file(path, "zsre", make, _selection(limit, sample, seed, skip_unknown))
    dataset.digest += f"-{target}"
    return dataset


def knowns(
    path: str | Path,
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skip_unknown: Any = None,
) -> Dataset:
    """Read facts that a model knows, for tracing (`known_1000.json`). The attribute is the original answer.

    Args:
        path: the JSON file.
        limit: only the first so many cases.
        sample: only so many, drawn at random.
        seed: for the draw.
        skip_unknown: a model; leave out facts that it does not know.

    Raises:
        DataError: the file is missing, broken or of another format (found out while reading).
    """
    return from_file(path, "knowns", known_case, _selection(limit, sample, seed, skip_unknown))


def known_case(row: Row) -> Case | Skipped:
    """Make a case of a known fact. Its prompt counts, which may be longer than its template (478 of 1,209 are)."""
    record = validated(KnownRecord, row)
    name = record.known_id if record.known_id is not None else str(row.number)
    fact = fact_or_skip(row, name, subject=record.subject, prompt=record.prompt, target=None, original=record.attribute)
    return fact if isinstance(fact, Skipped) else Case(id=name, fact=fact, relation=record.relation_id)


def wise(
    path: str | Path,
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skip_unknown: Any = None,
) -> Dataset:
    """Read WISE's hallucination or temporal edits: long targets, and an unrelated text that must stay as it is.

    The temporal set's `ood_rephrase` is a text about the subject: it becomes an essence text, not a paraphrase.

    Args:
        path: the JSON file.
        limit: only the first so many cases.
        sample: only so many, drawn at random.
        seed: for the draw.
        skip_unknown: a model; leave out facts that it does not know.

    Raises:
        DataError: the file is missing, broken or of another format (found out while reading).
    """
    return from_file(path, "zsre", wise_case, _selection(limit, sample, seed, skip_unknown))


def wise_case(row: Row) -> Case | Skipped:
    """Make a case of one of WISE's records."""
    record, name = validated(WiseRecord, row), str(row.number)
    fact = fact_or_skip(
        row, name, subject=record.subject, prompt=record.prompt, target=record.target_new, original=None
    )
    if isinstance(fact, Skipped):
        return fact
    essence = () if record.ood_rephrase is None else (record.ood_rephrase,)
    unrelated = (record.locality_prompt, record.locality_ground_truth)
    return Case(id=name, fact=fact, essence=essence, locality=(unrelated,) if unrelated[1].strip() else ())


def mini(
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skip_unknown: Any = None,
    facts: Literal["counterfact", "knowns"] = "counterfact",
) -> Dataset:
    """Return the built-in model's own records: CounterFact's fields, other facts of the subject, reference texts.

    Args:
        limit: only the first so many cases.
        sample: only so many, drawn at random.
        seed: for the draw.
        skip_unknown: a model; leave out facts that it does not know.
        facts: `"counterfact"` for evaluation, `"knowns"` for tracing.

    Raises:
        SettingError: an unknown `facts`.
    """
    from engram.mini import records

    sources = {"counterfact": records.counterfact_records, "knowns": records.known_facts}
    if facts not in sources:
        raise SettingError(f"mini has no {facts!r}. {did_you_mean(facts, sources)}")
    data = sources[facts]()
    identity = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
    name = "mini" if facts == "counterfact" else "mini-knowns"

    def read() -> Iterator[Case | Skipped]:
        for number, record in enumerate(data):
            row = Row(Path(name), number + 1, number, record)
            yield original_case(row, {}) if facts == "counterfact" else known_case(row)

    return Dataset(name, facts, identity, read, _selection(limit, sample, seed, skip_unknown))


def _selection(limit: int | None, sample: int | None, seed: int, skip_unknown: Any) -> Selection:
    return Selection(limit=limit, sample=sample, seed=seed, skip_unknown=skip_unknown)
