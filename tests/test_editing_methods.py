"""Every registered method keeps the contract of methods, on models whose weights lie either way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import golden_tokenizer, tiny_model

from contracts import check_method
from engram.editing import METHODS, method_named
from engram.facts import Fact
from engram.models import LM

FACTS = [
    Fact("Ann Bell", "{} lives in the city of", "Rome"),
    Fact("Bo", "It is said that {} plays the", "harp today"),
]

FEW: dict[str, dict[str, Any]] = {
    "ft": {"layer": 1, "steps": 3},
    "ft-l": {"layer": 1, "steps": 3, "bound": 0.01},
    "grace": {"layer": 1, "steps": 6, "lr": 0.3, "start": "warm", "radius": 0.01},
    "memit": {"layers": (1, 2), "steps": 10, "lr": 0.02, "contexts": ("{}",), "weight": 1e-3},
    "rome": {"layer": 1, "steps": 10, "lr": 0.02, "contexts": ("{}",)},
}
"""Settings with which a method writes a little in little time."""


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_method_keeps_the_contract(family: str, name: str, tmp_path: Path) -> None:
    lm = LM(tiny_model(family), golden_tokenizer(), name=f"own-{family}")
    extra = {"covariance": torch.eye(lm.d_mlp)} if name in ("rome", "memit") else {}
    check_method(lm, method_named(name, **FEW[name], **extra), FACTS, tmp_path)
