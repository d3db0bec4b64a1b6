"""What a model has at one site, at the looked up token of each fact's prompts: keys and states, measured when asked.

Nothing behind a token reaches it, so prompts end with it, and a pass ends at the site.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.parts.contexts import Contexts, flat, shares
from engram.editing.parts.prompts import require_target, rows_for
from engram.editing.parts.targets import by_length, mode_of
from engram.editing.records import Mode
from engram.facts import Fact
from engram.models.chat import wrap_for
from engram.models.encoding import left_padded
from engram.models.hooks import Site, record

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Lookups:
    """Prompts of facts as tokens, each ending with the token that is looked up.

    Args:
        rows: token ids.
        fact: the fact of each row.
        share: how much each row counts in its fact's mean.
        count: the number of facts.
    """

    rows: Sequence[list[int]]
    fact: Sequence[int]
    share: Sequence[float]
    count: int

    @torch.no_grad()
    def mean(self, lm: "LM", site: Site) -> Float[Tensor, "fact width"]:
        """Return what the model has at a site now, averaged over each fact's prompts, in fp32 on the CPU.

        Raises:
            NumericalError: it contains NaN or infinity.
        """
        total: Tensor | None = None
        for some in by_length(self.rows):
            ids, mask = left_padded([self.rows[i] for i in some])
            with record(lm, [site], stop=True) as seen:
                lm.forward(ids, mask=mask, keep=1)
            there = seen[site][:, -1].float().cpu()
            weighted = there * torch.tensor([self.share[i] for i in some])[:, None]
            total = there.new_zeros(self.count, there.shape[1]) if total is None else total
            total.index_add_(0, torch.tensor([self.fact[i] for i in some]), weighted)
        found = torch.empty(0, 0) if total is None else total
        lm.require_finite(found, f"The {site}")
        return found


def lookups(
    lm: "LM",
    facts: Sequence[Fact],
    *,
    contexts: Contexts = ("{}",),
    token: str = "subject_last",
    mode: Mode | None = None,
    chat: bool = False,
) -> Lookups:
    """Tokenise the prompts of facts up to the token that is looked up.

    Args:
        lm: the model.
        facts: the facts.
        contexts: templates that count as `shares` says.
        token: one of `engram.editing.parts.prompts.TOKENS`.
        mode: insert, modify or erase; by whether a fact names its original when not given.
        chat: wrap prompts with the tokenizer's chat template.

    Raises:
        FactError, PromptTooLong, SettingError: as `find_values`.
    """
    wrap, texts, share = wrap_for(lm, chat=chat), flat(contexts), shares(contexts)
    rows = [
        row
        for i, fact in enumerate(facts)
        for row in rows_for(
            lm,
            i,
            fact,
            texts,
            wrap,
            target=None if mode_of(fact, mode) == "erase" else require_target(fact),
            token=token,
        )
    ]
    return Lookups(
        [row.ids[: row.lookup + 1] for row in rows], [row.fact for row in rows], share * len(facts), len(facts)
    )
