"""What each format's records must contain (pydantic), and how a subject in a filled prompt becomes a template.

Unknown fields are ignored in published formats, which come in many versions, and refused in a user's own file, where
they are most likely misspelt. Spaces around a user's texts are left out; published ones stay as they are.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from engram.datasets.files import split_cell
from engram.facts import Fact


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be empty")
    return text


def _trimmed(text: str) -> str:
    return text.strip(" \t")


Text = Annotated[str, AfterValidator(_not_blank)]
Trimmed = Annotated[str, AfterValidator(_trimmed), AfterValidator(_not_blank)]
Several = Annotated[tuple[Trimmed, ...], BeforeValidator(split_cell)]
Name = Annotated[str, BeforeValidator(str)]


class Record(BaseModel):
    """A record of a published format."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Answer(Record):
    """CounterFact's target."""

    str_: Text = Field(alias="str")
    id: str = ""


class Rewrite(Record):
    """CounterFact's requested rewrite."""

    prompt: Text
    subject: Text
    target_new: Answer
    target_true: Answer
    relation_id: str = ""


class OtherFact(Record):
    """A fact of the same subject that is to stay (`mini` has them)."""

    prompt: Text
    target_true: Text


class CounterFactRecord(Record):
    """CounterFact, original format."""

    requested_rewrite: Rewrite
    paraphrase_prompts: tuple[Text, ...]
    neighborhood_prompts: tuple[Text, ...]
    attribute_prompts: tuple[Text, ...] = ()
    generation_prompts: tuple[Text, ...] = ()
    other_facts: tuple[OtherFact, ...] = ()
    reference_texts: tuple[str, ...] = ()
    essence_texts: tuple[str, ...] = ()


class EasyEditRecord(Record):
    """CounterFact in EasyEdit's format."""

    prompt: Text
    subject: Text
    target_new: Text
    ground_truth: Text
    rephrase_prompt: Text
    locality_prompt: Text
    locality_ground_truth: Text


class ZsreRecord(Record):
    """zsRE as MEND's authors published it for evaluation."""

    subject: Text
    src: Text
    rephrase: Text
    alt: str  # empty in some published records
    answers: Annotated[tuple[Text, ...], Field(min_length=1)]
    loc: Text
    loc_ans: Text


class KnownRecord(Record):
    """A fact that a model knows, for tracing."""

    subject: Text
    attribute: Text
    prompt: Text
    relation_id: str = ""


class WiseRecord(Record):
    """WISE's hallucination and temporal sets."""

    prompt: Text
    subject: Text
    target_new: Text
    locality_prompt: Text
    locality_ground_truth: str  # empty in some published records
    ood_rephrase: Text | None = None


class Kept(BaseModel):
    """A fact of the same subject that is to stay: a prompt with `{}` and its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Trimmed
    original: Trimmed


class FactRecord(BaseModel):
    """A user's fact. Subject and prompt must be there, for edits a target, too (docs/evaluation.md has the others)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: Trimmed
    prompt: Trimmed
    target: Trimmed | None = None
    original: Trimmed | None = None
    id: Name | None = None
    relation: str = ""
    paraphrases: Several = ()
    neighborhood: Several = ()
    attributes: Several = ()
    generation: Several = ()
    references: Several = ()
    essence: Several = ()
    kept: tuple[Kept, ...] = ()
    locality: tuple[tuple[Trimmed, Trimmed], ...] = ()


def fact_of(*, subject: str, prompt: str, target: str | None, original: str | None) -> Fact:
    """Make a fact from a template or from a filled prompt.

    Raises:
        FactError: the subject does not stand in the prompt.
    """
    if "{}" in prompt:
        return Fact(subject, prompt, target, original)
    return Fact.from_text(prompt, subject, target=target, original=original)
