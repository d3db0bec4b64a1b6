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
from typing import Unpack

from engram.datasets.dataset import Dataset, Selection, SelectionOptions, Skipped
from engram.datasets.files import Row, digest, require_file, rows, validated
from engram.datasets.reading import read_cases
from engram.datasets.schemas import CounterFactRecord, EasyEditRecord, fact_of
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
    path: str | Path, *, snippets: str | Path | None = None, **selection: Unpack[SelectionOptions]
) -> Dataset:
    """Read CounterFact, original or EasyEdit's format.

    Args:
        path: the JSON file.
        snippets: CounterFact's `attribute_snippets.json`, which gives reference and essence texts.
        **selection: limit, sample, seed, skip_unknown, skip; see `Selection`.

    Raises:
        DataError: the file is missing or broken; whether its records are is found out while reading.
    """
    file = require_file(path)
    texts = None if snippets is None else require_file(snippets)
    identity = digest(file) if texts is None else f"{digest(file)}+{digest(texts)}"

    def read() -> Iterator[Case | Skipped]:
        known = {} if texts is None else read_snippets(texts)
        return read_cases(file, lambda row: easyedit_case(row) if is_easyedit(row) else original_case(row, known))

    return Dataset(file.stem, "counterfact", identity, read, Selection(**selection))


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
        if isinstance(row, Skipped):
            raise DataError(f"{row.where}: {row.reason}")
        try:
            key = (row.fields["relation_id"], row.fields["target_id"])
            texts[key] += [(sample["name"], sample["text"]) for sample in row.fields["samples"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{row.where}: snippets need relation_id, target_id, samples[name, text]: {error}"
            ) from error
    return dict(texts)


def original_case(row: Row, snippets: Snippets) -> Case:
    """Make a case of a record in CounterFact's original format.

    Raises:
        DataError: a field is missing or of another type.
        FactError: the subject does not stand in the prompt.
    """
    record = validated(CounterFactRecord, row)
    rewrite = record.requested_rewrite
    new, true = rewrite.target_new, rewrite.target_true
    about = snippets.get((rewrite.relation_id, new.id), [])
    return Case(
        id=row.name,
        fact=fact_of(subject=rewrite.subject, prompt=rewrite.prompt, target=new.str_, original=true.str_),
        relation=rewrite.relation_id,
        paraphrases=record.paraphrase_prompts,
        neighborhood=record.neighborhood_prompts,
        attributes=record.attribute_prompts,
        generation=record.generation_prompts,
        references=record.reference_texts + tuple(text for _, text in about),
        essence=record.essence_texts + tuple(text for name, text in about if name == rewrite.subject),
        kept=tuple(_other(rewrite.subject, other.prompt, other.target_true) for other in record.other_facts),
    )


def _other(subject: str, prompt: str, answer: str) -> Fact:
    if prompt.count("{}") != 1:
        raise DataError(f"other_facts: the prompt {prompt!r} needs exactly one '{{}}'.")
    return Fact(subject, prompt, None, answer)


def easyedit_case(row: Row) -> Case:
    """Make a case of a record in EasyEdit's format.

    Raises:
        DataError: a field is missing or of another type.
        FactError: the subject does not stand in the prompt.
    """
    record = validated(EasyEditRecord, row)
    paraphrase = asks_for_the_fact(record.rephrase_prompt, record.subject)
    # The locality prompt is a neighborhood prompt where its answer is the original one, as in every CounterFact record.
    neighbor = record.locality_ground_truth == record.ground_truth
    return Case(
        id=row.name,
        fact=fact_of(
            subject=record.subject, prompt=record.prompt, target=record.target_new, original=record.ground_truth
        ),
        paraphrases=(record.rephrase_prompt,) if paraphrase else (),
        generation=() if paraphrase else (record.rephrase_prompt,),
        neighborhood=(record.locality_prompt,) if neighbor else (),
        locality=((record.locality_prompt, record.locality_ground_truth),),
    )
