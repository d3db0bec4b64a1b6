"""CounterFact (ROME paper, appendix D) in its original format and in EasyEdit's.

EasyEdit's `rephrase_prompt` is one of CounterFact's *generation* prompts in about five of six records ("Anaal Nathrakh
originated from" after an edit of where the band was founded), which does not ask for the edited fact. CounterFact's
real paraphrases stand behind an unrelated sentence or a scrap of one ("The median age was 35 years. Tom McCall
Waterfront Park, in"), and its generation prompts never do; that is how the two are told apart. On the 400 records
of which both formats are at hand the rule is right 400 times, and it is right for all
their 800 paraphrases and 4,000 generation prompts.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engram.datasets.dataset import Dataset, Selection, Skipped
from engram.datasets.files import Row, digest, require_file, rows, validated
from engram.datasets.schemas import CounterFactRecord, EasyEditRecord, fact_or_skip
from engram.errors import DataError
from engram.facts import Case, Fact

_FOREIGN_BEGINNING = re.compile(
    r"[.!?:;)\]\"”][\"'’”)\]]*\s"  # a sentence or a scrap of text that ended
    r"|\.['’]\s|\n"
    r"|^Category:|^\d+\s"  # remains of wiki markup
)

Snippets = dict[tuple[str, str], list[tuple[str, str]]]
"""(name, text) of every snippet by relation id and target id."""


def counterfact(
    path: str | Path,
    *,
    snippets: str | Path | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skip_unknown: Any = None,
) -> Dataset:
    """Read CounterFact, original or EasyEdit's format.

    Args:
        path: the JSON file.
        snippets: CounterFact's `attribute_snippets.json`, which gives reference and essence texts.
        limit: only the first so many cases.
        sample: only so many, drawn at random.
        seed: for the draw.
        skip_unknown: a model; leave out facts that it does not know.

    Raises:
        DataError: the file is missing, broken, or of another format (found out while reading).
    """
    file = require_file(path)
    texts = None if snippets is None else require_file(snippets)
    identity = digest(file) if texts is None else f"{digest(file)}+{digest(texts)}"
    selection = Selection(limit=limit, sample=sample, seed=seed, skip_unknown=skip_unknown)

    def read() -> Iterator[Case | Skipped]:
        known = {} if texts is None else read_snippets(texts)
        for row in rows(file):
            yield easyedit_case(row) if is_easyedit(row) else original_case(row, known)

    return Dataset(file.stem, "counterfact", identity, read, selection)


def is_easyedit(row: Row) -> bool:
    """Say whether a record is of EasyEdit's format."""
    return "rephrase_prompt" in row.fields and "requested_rewrite" not in row.fields


def asks_for_the_fact(prompt: str, subject: str) -> bool:
    """Say whether a `rephrase_prompt` is a paraphrase rather than a generation prompt (see the module's text)."""
    head = prompt[: max(0, prompt.rfind(subject))]
    return _FOREIGN_BEGINNING.search(head) is not None


def read_snippets(path: Path) -> Snippets:
    """Read CounterFact's attribute snippets: texts about subjects, by relation and target.

    Raises:
        DataError: broken, or of another form.
    """
    texts: Snippets = defaultdict(list)
    for row in rows(path):
        try:
            key = (row.fields["relation_id"], row.fields["target_id"])
            texts[key] += [(sample["name"], sample["text"]) for sample in row.fields["samples"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{row.where}: snippets need relation_id, target_id, samples[name, text]: {error}"
            ) from error
    return dict(texts)


def original_case(row: Row, snippets: Snippets) -> Case | Skipped:
    """Make a case of a record in CounterFact's original format."""
    record = validated(CounterFactRecord, row)
    rewrite = record.requested_rewrite
    new, true = rewrite.target_new, rewrite.target_true
    fact = fact_or_skip(
        row, record.case_id, subject=rewrite.subject, prompt=rewrite.prompt, target=new.str_, original=true.str_
    )
    if isinstance(fact, Skipped):
        return fact
    about = snippets.get((rewrite.relation_id, new.id), [])
    return Case(
        id=record.case_id,
        fact=fact,
        relation=rewrite.relation_id,
        paraphrases=record.paraphrase_prompts,
        neighborhood=record.neighborhood_prompts,
        attributes=record.attribute_prompts,
        generation=record.generation_prompts,
        references=record.reference_texts + tuple(text for _, text in about),
        essence=record.essence_texts + tuple(text for name, text in about if name == rewrite.subject),
        kept=tuple(_other(rewrite.subject, other.prompt, other.target_true, row) for other in record.other_facts),
    )


def _other(subject: str, prompt: str, answer: str, row: Row) -> Fact:
    if prompt.count("{}") != 1:
        raise DataError(f"{row.where}: other_facts: the prompt {prompt!r} needs exactly one '{{}}'.")
    return Fact(subject, prompt, None, answer)


def easyedit_case(row: Row) -> Case | Skipped:
    """Make a case of a record in EasyEdit's format."""
    record = validated(EasyEditRecord, row)
    name = record.case_id if record.case_id is not None else str(row.number)
    fact = fact_or_skip(
        row,
        name,
        subject=record.subject,
        prompt=record.prompt,
        target=record.target_new,
        original=record.ground_truth,
    )
    if isinstance(fact, Skipped):
        return fact
    paraphrase = asks_for_the_fact(record.rephrase_prompt, record.subject)
    # The locality prompt is a neighborhood prompt where its answer is the original one, as in every CounterFact record.
    neighbor = record.locality_ground_truth == record.ground_truth
    return Case(
        id=name,
        fact=fact,
        paraphrases=(record.rephrase_prompt,) if paraphrase else (),
        generation=() if paraphrase else (record.rephrase_prompt,),
        neighborhood=(record.locality_prompt,) if neighbor else (),
        locality=((record.locality_prompt, record.locality_ground_truth),),
    )
