"""Methods for tests of evaluation: cheap, deterministic, and a few that go wrong."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engram.editing import Edit, LowRank
from engram.errors import NumericalError
from engram.facts import Fact


@dataclass(frozen=True, kw_only=True)
class Push:
    """A rank-one edit drawn from the fact's own words: no optimisation, the same in every process.

    Args:
        size: norm of the update.
        refuse: subjects for which it raises, as a method does that runs into NaN.
        poison: subjects for which its edit makes the model's output NaN.
    """

    size: float = 3.0
    refuse: tuple[str, ...] = ()
    poison: tuple[str, ...] = ()

    def __call__(self, lm: Any, facts: Sequence[Fact], *, progress: Any = None) -> Edit:
        (fact,) = facts
        if fact.subject in self.refuse:
            raise NumericalError(f"step 3 of {fact.subject} is NaN")
        seed = int.from_bytes(hashlib.sha256(f"{fact.text}|{fact.target}".encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        left = torch.nn.functional.normalize(torch.randn(lm.d_mlp, 1, generator=generator), dim=0) * self.size
        right = torch.nn.functional.normalize(torch.randn(lm.d_model, 1, generator=generator), dim=0)
        if fact.subject in self.poison:
            right = right * torch.nan
        return Edit.of(lm, {lm.mlp_out_name(1): LowRank(left, right)}, ())
