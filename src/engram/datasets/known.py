"""Records from what a model is shown to know, for models that come without any."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from engram.datasets.dataset import Dataset
from engram.editing.answers import Question, ask
from engram.errors import DataError
from engram.facts import Case, Fact
from engram.kinds import Kind, Relation, load_kinds

if TYPE_CHECKING:
    from engram.models import LM

SURE = 0.3
"""An answer with this probability counts as known."""
NEIGHBORS, ATTRIBUTES = 10, 5
_LEAST_NEIGHBORS, _LEAST_ANSWERS, _PER_RELATION = 2, 3, 3


def known(lm: "LM", *, count: int = 24, seed: int = 0) -> Dataset:
    """Ask a model about well-known things, and make CounterFact-like records of what it answers with confidence.

    The original is the model's own answer (not the truth), the target another answer that it gives in the same
    relation. The paraphrases are the relation's; the neighborhood is other subjects to which the model gives the same
    original, the attributes those to which it gives the target. Facts without two such neighbors are left out, and so
    are answers that stand in the subject's name. At most three records share a relation.

    Args:
        lm: the model.
        count: how many records; it stops asking when it has them.
        seed: for the choice of subjects and targets.

    Raises:
        DataError: the model knows no fact with neighbors.
    """
    generator = random.Random(seed)
    cases = tuple(islice((c for kind, relation in _questions() for c in _cases(lm, kind, relation, generator)), count))
    if not cases:
        raise DataError(
            f"{lm.name} answers none of the built-in questions with confidence, so no records can be made of what it "
            "knows. Give data of your own (docs/evaluation.md)."
        )
    digest = hashlib.sha256("\n".join(map(repr, cases)).encode()).hexdigest()[:16]
    return Dataset(f"what {lm.name} knows", "counterfact", digest, lambda: cases)


def _questions() -> Iterator[tuple[Kind, Relation]]:
    """Yield the first relation of every kind, then the second, so that few records are about many things."""
    kinds = load_kinds()
    for some in zip_longest(*(kind.relations for kind in kinds)):
        yield from ((kind, relation) for kind, relation in zip(kinds, some, strict=True) if relation is not None)


def _cases(lm: "LM", kind: Kind, relation: Relation, generator: random.Random) -> list[Case]:
    """Return the records of one relation."""
    facts = [relation.fact(subject) for subject in kind.subjects]
    given = zip(kind.subjects, ask(lm, [Question(text=fact.text) for fact in facts]), strict=True)
    groups: dict[str, list[str]] = defaultdict(list)
    for subject, answer in given:
        if answer.says and answer.probability >= SURE and answer.says not in subject:
            groups[answer.says].append(subject)
    if len(groups) < _LEAST_ANSWERS:
        return []
    able = [
        subject
        for answer, subjects in groups.items()
        if len(subjects) > _LEAST_NEIGHBORS and _others(answer, groups)
        for subject in subjects
    ]
    chosen = generator.sample(able, min(_PER_RELATION, len(able)))
    return [_case(kind, relation, subject, groups, generator) for subject in chosen]


def _others(original: str, answers: Iterable[str]) -> list[str]:
    """Return the answers that do not just say the original in more or fewer words."""
    return [answer for answer in answers if answer not in original and original not in answer]


def _case(
    kind: Kind, relation: Relation, subject: str, groups: Mapping[str, Sequence[str]], generator: random.Random
) -> Case:
    original = next(answer for answer, subjects in groups.items() if subject in subjects)
    target = generator.choice(_others(original, groups))
    same = [other for other in groups[original] if other != subject]
    return Case(
        id=f"{kind.name}, {relation.name}: {subject}",
        fact=Fact(subject, relation.prompt, target, original),
        relation=f"{kind.name}, {relation.name}",
        paraphrases=tuple(template.replace("{}", subject) for template in relation.paraphrases),
        neighborhood=tuple(relation.fact(other).text for other in same[:NEIGHBORS]),
        attributes=tuple(relation.fact(other).text for other in groups[target][:ATTRIBUTES]),
    )
