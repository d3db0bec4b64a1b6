"""Facts as token rows: contexts in front, a chat template around, the target behind, the subject's last token marked.

Rows are padded on the left, so every row ends in its last prompt or target token and the last columns of a batch are
the positions whose logits are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from engram.editing.records import FactRecord, Mode
from engram.errors import FactError, SettingError
from engram.facts import Fact
from engram.models.chat import Wrap
from engram.models.continuations import Continuation, continued
from engram.models.encoding import left_padded

if TYPE_CHECKING:
    from engram.models import LM

TOKENS = ("subject_first", "subject_middle", "subject_last", "last")
"""Tokens whose key can be looked up; "last" is the prompt's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt with its target, as tokens.

    Args:
        fact: index of the fact it belongs to.
        ids: all tokens but the target's last.
        lookup: index of the token whose key is looked up (the subject's last unless asked otherwise).
        targets: the target's token ids; none where the whole next-token distribution is compared.
        text: the prompt without target.
        essence: whether it is the prompt on which the output must stay as it was.
    """

    fact: int
    ids: list[int]
    lookup: int
    targets: list[int]
    text: str
    essence: bool = False

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's tokens, without those of the target that follow it."""
        return self.ids[: len(self.ids) - max(0, len(self.targets) - 1)]

    def record(
        self,
        lm: "LM",
        fact: Fact,
        mode: Mode,
        layer: int,
        *,
        losses: Sequence[float],
        stopped: str,
        looked_up: bool = True,
        numbers: Mapping[str, float] | None = None,
    ) -> FactRecord:
        """Return what was done for the fact of this row.

        Args:
            lm: the model.
            fact: the fact.
            mode: how it was treated.
            layer: the layer that was changed.
            losses: the loss at every step.
            stopped: why there are no more.
            looked_up: whether the key of a token was used.
            numbers: norms and probabilities worth knowing.
        """
        return FactRecord(
            fact=fact,
            mode=mode,
            layers=(layer,),
            text=self.text,
            tokens=tuple(lm.tokens(self.prompt_ids)),
            position=self.lookup if looked_up else None,
            losses=tuple(losses),
            stopped=stopped,
            numbers=numbers or {},
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the left.

    Args:
        rows: what was padded.
        ids: token ids.
        mask: 1 at real tokens.
        lookup: column of the subject's last token in each row.
        fact: fact of each row.
    """

    rows: tuple[Row, ...]
    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    lookup: Int[Tensor, " batch"]
    fact: Int[Tensor, " batch"]

    @property
    def suffix(self) -> int:
        """Number of columns from the first subject's last token to the end."""
        return self.ids.shape[1] - int(self.lookup.min())


def rows_for(
    lm: "LM",
    index: int,
    fact: Fact,
    contexts: Sequence[str],
    wrap: Wrap,
    *,
    target: str | None,
    token: str = "subject_last",
) -> list[Row]:
    """Return one row per context for a fact.

    Args:
        lm: the model.
        index: the fact's index in its batch.
        fact: the fact.
        contexts: templates with one `{}` into which the prompt is put.
        wrap: what a chat template adds.
        target: what is to follow; None for rows that end with the prompt.
        token: whose key is looked up: one of `TOKENS`.

    Raises:
        FactError: the target has no tokens, or the tokenizer drops the subject or joins it with the target.
        PromptTooLong: a context, the prompt and the target do not fit into the model's positions.
        SettingError: a context without exactly one `{}`.
    """
    prompts: list[str] = []
    begins: list[int] = []
    for context in contexts:
        if context.count("{}") != 1:
            raise SettingError(f"The context {context!r} needs exactly one '{{}}', where the prompt goes.")
        prompts.append(wrap.around(context.replace("{}", fact.text)))
        begins.append(len(wrap.before) + context.index("{}") + fact.subject_chars[0])
    if target is None:
        encoded = lm.encode(prompts)
        places = [range(length, length) for length in encoded.lengths]
    else:
        found = continued(lm, [Continuation.after(prompt, target) for prompt in prompts])
        encoded, places = found.encoded, found.places
    rows: list[Row] = []
    for i, (prompt, begin, place) in enumerate(zip(prompts, begins, places, strict=True)):
        ids = encoded.ids[i, : place.stop].tolist()
        span = encoded.span(i, begin, begin + len(fact.subject))
        lookup = place.start - 1 if token == "last" else span[_place(token, len(span))]
        if lookup >= place.start:
            raise FactError(f"The tokenizer joins {fact.subject!r} with {target!r}. Write a word in between.")
        rows.append(Row(index, ids[:-1] if place else ids, lookup, ids[place.start :], prompt))
    return rows


def target_rows(lm: "LM", facts: Sequence[Fact], wrap: Wrap, *, token: str = "subject_last") -> list[Row]:
    """Return one row per fact, its own prompt with its target; arguments and errors as for `rows_for`."""
    return [
        rows_for(lm, i, fact, ["{}"], wrap, target=require_target(fact), token=token)[0] for i, fact in enumerate(facts)
    ]


def _place(token: str, length: int) -> int:
    """Return which of a subject's tokens is meant."""
    return {"subject_first": 0, "subject_middle": (length - 1) // 2, "subject_last": length - 1}[token]


def essence_row(lm: "LM", index: int, fact: Fact, wrap: Wrap, *, at_subject: bool, token: str = "subject_last") -> Row:
    """Return the row "<subject> is a", on which the model's output must stay (ROME paper, §3.1, eq. 4).

    Args:
        lm: the model.
        index: the fact's index in its batch.
        fact: the fact.
        wrap: what a chat template adds.
        at_subject: compare after the looked up token, as the published code does, instead of at the end.
        token: which token is looked up: one of `TOKENS`.
    """
    row = rows_for(lm, index, Fact(fact.subject, "{} is a"), ["{}"], wrap, target=None, token=token)[0]
    ids = row.ids[: row.lookup + 1] if at_subject else row.ids
    return Row(index, ids, row.lookup, [], row.text, essence=True)


def padded(rows: Sequence[Row]) -> Batch:
    """Pad rows on the left to one length."""
    ids, mask = left_padded([row.ids for row in rows])
    gaps = [ids.shape[1] - len(row.ids) for row in rows]
    return Batch(
        tuple(rows),
        ids,
        mask,
        torch.tensor([gap + row.lookup for gap, row in zip(gaps, rows, strict=True)]),
        torch.tensor([row.fact for row in rows]),
    )


def require_target(fact: Fact) -> str:
    """Return a fact's target, without spaces at its end, which would be a token of their own.

    Raises:
        FactError: it has none.
    """
    if fact.target is None or not fact.target.strip():
        raise FactError(f"The fact {fact.text!r} has no target. Give what the model shall say: Fact(..., target=...).")
    return fact.target.rstrip(" ")
