"""zsRE, known facts, WISE's two sets, and `mini`'s own records."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Unpack

from engram.datasets.counterfact import original_case
from engram.datasets.dataset import Dataset, Selection, SelectionOptions
from engram.datasets.files import Row, validated
from engram.datasets.reading import from_file
from engram.datasets.schemas import KnownRecord, WiseRecord, ZsreRecord, fact_of
from engram.errors import DataError, SettingError, did_you_mean
from engram.facts import Case


def zsre(
    path: str | Path, *, target: Literal["alt", "answer"] = "alt", **selection: Unpack[SelectionOptions]
) -> Dataset:
    """Read zsRE (`zsre_mend_eval`; ROME paper, §3.2): one rephrasing, and an unrelated question as locality prompt.

    Args:
        path: the JSON file.
        target: `"alt"` edits in another answer than the true one; `"answer"` teaches the first true answer, as the
            ROME repository's own loader does. The unrelated question gets its "?" as there.
        **selection: limit, sample, seed, skip_unknown, skip; see `Selection`.

    Raises:
        DataError: the file is missing or broken; whether its records are is found out while reading.
        SettingError: an unknown `target`.
    """
    if target not in ("alt", "answer"):
        raise SettingError(f"There is no zsRE target {target!r}. {did_you_mean(target, ('alt', 'answer'))}")
    dataset = from_file(path, "zsre", lambda row: zsre_case(row, teach=target == "answer"), Selection(**selection))
    dataset.digest += f"-{target}"
    return dataset


def zsre_case(row: Row, *, teach: bool) -> Case:
    """Make a case of one of zsRE's records, its target another answer than the true one or (`teach`) the true one.

    Raises:
        DataError: a field is missing or of another type, or there is nothing to edit in.
        FactError: the subject does not stand in the prompt.
    """
    record = validated(ZsreRecord, row)
    wanted, original = (record.answers[0], None) if teach else (record.alt, record.answers[0])
    if not wanted.strip():
        raise DataError("alt is empty, so there is nothing to edit in")
    fact = fact_of(subject=record.subject, prompt=record.src, target=wanted, original=original)
    return Case(id=row.name, fact=fact, paraphrases=(record.rephrase,), locality=((f"{record.loc}?", record.loc_ans),))


def knowns(path: str | Path, **selection: Unpack[SelectionOptions]) -> Dataset:
    """Read facts that a model knows, for tracing (`known_1000.json`). The attribute is the original answer.

    Args:
        path: the JSON file.
        **selection: limit, sample, seed, skip_unknown, skip; see `Selection`.

    Raises:
        DataError: the file is missing or broken; whether its records are is found out while reading.
    """
    return from_file(path, "knowns", known_case, Selection(**selection))


def known_case(row: Row) -> Case:
    """Make a case of a known fact. Its prompt counts, which may be longer than its template (478 of 1,209 are).

    Raises:
        DataError: a field is missing or of another type.
        FactError: the subject does not stand in the prompt.
    """
    record = validated(KnownRecord, row)
    fact = fact_of(subject=record.subject, prompt=record.prompt, target=None, original=record.attribute)
    return Case(id=row.name, fact=fact, relation=record.relation_id)


def wise(path: str | Path, **selection: Unpack[SelectionOptions]) -> Dataset:
    """Read WISE's hallucination or temporal edits: long targets, and an unrelated text that must stay as it is.

    The temporal set's `ood_rephrase` is a text about the subject: it becomes an essence text, not a paraphrase.

    Args:
        path: the JSON file.
        **selection: limit, sample, seed, skip_unknown, skip; see `Selection`.

    Raises:
        DataError: the file is missing or broken; whether its records are is found out while reading.
    """
    return from_file(path, "zsre", wise_case, Selection(**selection))


def wise_case(row: Row) -> Case:
    """Make a case of one of WISE's records.

    Raises:
        DataError: a field is missing or of another type.
        FactError: the subject does not stand in the prompt.
    """
    record = validated(WiseRecord, row)
    essence = () if record.ood_rephrase is None else (record.ood_rephrase,)
    unrelated = (record.locality_prompt, record.locality_ground_truth)
    return Case(
        id=row.name,
        fact=fact_of(subject=record.subject, prompt=record.prompt, target=record.target_new, original=None),
        essence=essence,
        locality=(unrelated,) if unrelated[1].strip() else (),
    )


def mini(*, facts: Literal["counterfact", "knowns"] = "counterfact", **selection: Unpack[SelectionOptions]) -> Dataset:
    """Return the built-in model's own records: CounterFact's fields, other facts of the subject, reference texts.

    Args:
        facts: `"counterfact"` for evaluation, `"knowns"` for tracing.
        **selection: limit, sample, seed, skip_unknown, skip; see `Selection`.

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

    def read() -> Iterator[Case]:
        for number, record in enumerate(data):
            row = Row(Path(name), number + 1, number, record)
            yield original_case(row, {}) if facts == "counterfact" else known_case(row)

    return Dataset(name, facts, identity, read, Selection(**selection))
