"""The bounds of `tolerance` hide no error: a wrong layer, window, token or text lies far outside them."""

import pytest
import tolerance
import torch
from families import golden_lm

from edits import golden_fact, golden_json, golden_statistics
from engram.editing import ROME
from engram.facts import Fact
from engram.locate import trace
from engram.stats import statistics

FAR = 20
"""So many bounds away is an error seen."""


def test_sums_in_any_order_keep_the_bound_and_half_precision_does_not() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 4096, generator=draw), torch.randn(4096, 256, generator=draw)
    exact, size = a.double() @ b.double(), 4096**0.5
    shuffled = torch.randperm(4096, generator=draw)
    for found in (a @ b, a[:, shuffled] @ b[shuffled], a.flip(1) @ b.flip(0)):
        assert float((found - exact).abs().max()) < tolerance.of_sum(4096, size)
    assert float((a.bfloat16() @ b.bfloat16() - exact).abs().max()) > FAR * tolerance.of_sum(4096, size)


def test_another_window_or_number_of_samples_is_seen() -> None:
    lm, fact = golden_lm(), Fact("Kara 3000", "The maker of {} is")
    wanted = trace(lm, fact, noise=0.25, window=3, samples=3).mlp
    for options in ({"window": 4, "samples": 3}, {"window": 3, "samples": 2}):
        found = trace(lm, fact, noise=0.25, **options).mlp
        assert float((found - wanted).abs().max()) > FAR * tolerance.of_probability(lm), options


@pytest.mark.parametrize("change", [{"layer": 3}, {"token": "subject_first"}, {"steps": 3}])
def test_another_layer_token_or_number_of_steps_of_an_edit_is_seen(change: dict) -> None:
    lm, fact = golden_lm(), golden_fact(golden_json("rome")["edits"][1])
    settings = {"preset": "code", "contexts": ["{}"], "covariance": golden_statistics(), "layer": 2, "steps": 4}
    wanted, found = ROME(**settings)(lm, [fact]), ROME(**{**settings, **change})(lm, [fact])
    a, b = (next(iter(edit.updates.values())).dense() for edit in (wanted, found))
    assert float((a - b).norm() / a.norm()) > FAR * tolerance.of_descent(lm)


def test_one_text_of_hundreds_is_seen_in_key_statistics() -> None:
    lm, texts = golden_lm(), golden_json("texts")[:400]
    whole, short = (statistics(lm, 2, some, tolerance=None)[2].moment for some in (texts, texts[1:]))
    assert float((whole - short).norm() / whole.norm()) > FAR * 2 * tolerance.of_pass(lm, 3)
