"""What tests of statistics and edits share: the golden model with its statistics, and edits made of random numbers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from engram.editing import Dense, Edit, FactRecord, LowRank, Origin
from engram.facts import Fact
from engram.models import LM, load
from engram.stats import KeyStatistics, open_corpus
from engram.stats.counting import Counting, collect

DATA = Path(__file__).parent / "data"


@cache
def golden_lm() -> LM:
    return load(DATA / "golden_model", device="cpu")


@cache
def golden_json(name: str) -> Any:
    return json.loads((DATA / f"golden_{name}.json").read_text(encoding="utf-8"))


@cache
def golden_statistics() -> KeyStatistics:
    """Second moments of layers 1 to 4 as the golden edits used them."""
    lm = golden_lm()
    exact = Counting(precision="float64", tolerance=None)
    layers = collect(lm, [1, 2, 3, 4], open_corpus(golden_json("texts")), exact)
    return KeyStatistics(layers, lm.fingerprint)


def golden_fact(entry: dict[str, Any]) -> Fact:
    return Fact(entry["subject"], entry["prompt"], entry["target"], original=entry["original"])


def probabilities(lm: LM, prompts: list[str], *answers: str) -> torch.Tensor:
    """Geometric mean of token probabilities, as in the golden files: [prompt answer]."""
    return torch.exp(-lm.score(prompts, [list(answers)] * len(prompts)))


def random_edit(lm: LM, layer: int = 1, *, seed: int = 0, rank: int = 2, bias: bool = False, size: float = 0.3) -> Edit:
    """An edit that changes what a model says, and means nothing."""
    draw = torch.Generator().manual_seed(seed)
    rows, cols = lm.mlp_out(layer).weight.shape
    left, right = torch.randn(rows, rank, generator=draw), torch.randn(cols, rank, generator=draw)
    name = lm.mlp_out_name(layer)
    updates: dict[str, Any] = {name: LowRank(size * left, size * right)}
    if bias:
        path = name.removesuffix("weight") + "bias"
        updates[path] = Dense(size * torch.randn(lm.d_model, generator=draw))
    record = FactRecord(
        fact=Fact("Ann", "{} lives in", "Rome"), layers=(layer,), tokens=("Ann",), position=0, losses=(2.0, 1.0)
    )
    origin = Origin(method="rome", settings={"preset": "code"}, facts=(record,), contexts=("{}",))
    return Edit.of(lm, updates, (origin,))


def weights_of(lm: LM) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in lm.model.named_parameters()}


def unchanged(lm: LM, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in lm.model.named_parameters())
