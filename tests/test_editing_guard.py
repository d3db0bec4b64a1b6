"""The guard and fluency: what is measured is what is said, damage is seen, strict refuses, the model stays as is."""

import math

import pytest
import tolerance
import torch
from families import golden_lm, tiny

from engram.editing import Edit, FactRecord, Health, LowRank, Origin, Thresholds, guard
from engram.editing.check import check
from engram.editing.fluency import judged, perplexity, relative_norm, repeated
from engram.errors import EditMismatch, EditRefused, SettingError
from engram.facts import Fact
from engram.models import LM

TEXTS = ["John Holzu comes from Denver.", "Zuholpe Castle is situated in Delhi."]


def made(lm: LM, size: float = 1.0, *, layer: int = 2, target: str = "Vienna") -> Edit:
    """A random rank-one edit whose Frobenius norm is `size` times that of the weight."""
    weight = lm.mlp_out(layer).weight.detach()
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 1, generator=draw) for n in weight.shape)
    update = LowRank(left * (size * weight.norm() / left.norm() / right.norm()), right)
    fact = Fact("John Holzu", "{} comes from", target, "Denver")
    origin = Origin(method="by hand", settings={}, facts=(FactRecord(fact=fact, text=fact.text),))
    return Edit.of(lm, {lm.mlp_out_name(layer): update}, (origin,))


def nothing(lm: LM, target: str) -> Edit:
    """An edit that changes nothing."""
    return made(lm, 0.0, target=target)


def test_the_relative_norm_is_that_of_the_dense_matrices() -> None:
    lm = golden_lm()
    edit = made(lm, 0.7)
    (name,) = edit.updates
    change, weight = edit.delta(name), lm.mlp_out(2).weight.detach()
    rounding = tolerance.of_sum(weight.numel())
    assert relative_norm(lm, edit, name) == pytest.approx(float(change.norm() / weight.norm()), rel=rounding)
    assert relative_norm(lm, edit, name) == pytest.approx(0.7, rel=rounding)


def test_perplexity_is_that_of_each_text_alone() -> None:
    lm = golden_lm()
    total, count = 0.0, 0
    for text in TEXTS:
        ids = lm.encode(text).ids
        with torch.no_grad():
            logits = lm.model(ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    assert perplexity(lm, TEXTS) == pytest.approx(math.exp(total / count), rel=tolerance.of_log_probability(lm))


def test_perplexity_needs_two_tokens() -> None:
    with pytest.raises(SettingError, match="one token each"):
        perplexity(golden_lm(), ["a"])


def test_repetition_counts_repeated_triples() -> None:
    lm = golden_lm()
    assert repeated(lm, ["The"], ["The"]) == 0.0
    assert repeated(lm, ["The a b c d e"], ["The"]) == 0.0
    ids = lm.encode(" a a a a a a").ids.shape[1]
    assert repeated(lm, ["The a a a a a a"], ["The"]) == pytest.approx((ids - 3) / (ids - 2))


def test_an_edit_that_changes_nothing_is_healthy_where_the_target_is_said() -> None:
    lm = golden_lm()
    health = guard(lm, nothing(lm, "Denver"))
    assert health.ok and health.missed == () and health.largest_norm == 0.0
    assert health.perplexity[0] == health.perplexity[1] and health.repetition[0] == health.repetition[1]
    assert "good" in health.text()


def test_a_target_that_is_not_said_is_named(caplog: pytest.LogCaptureFixture) -> None:
    lm = golden_lm()
    health = guard(lm, nothing(lm, "Vienna"))
    assert health.missed == ("John Holzu comes from",)
    assert not health.ok and "did not get the new answer, such as John Holzu: Denver" in health.warnings[0]
    assert health.warnings[0] in caplog.text
    assert guard(lm, nothing(lm, "Vienna"), thresholds=Thresholds(require_target=False, context=0)).ok


def test_an_erased_answer_must_be_gone() -> None:
    lm = golden_lm()
    still = nothing(lm, "whatever")
    fact = Fact("John Holzu", "{} comes from", None, "Denver")
    record = FactRecord(fact=fact, mode="erase", text=fact.text)
    erased = Edit.of(lm, still.updates, (Origin(method="by hand", settings={}, facts=(record,)),))
    found = check(lm, erased, texts=False, made=False)
    assert found.health is not None and found.health.missed == (fact.text,) and not found.ok


def test_damage_raises_perplexity_and_strict_refuses_it() -> None:
    lm = golden_lm()
    before = [weight.detach().clone() for weight in lm.model.parameters()]
    health = guard(lm, made(lm, 60.0))
    assert health.perplexity[1] > 2 * health.perplexity[0]
    assert len(health.warnings) >= 2
    with pytest.raises(EditRefused, match="the model is as it was"):
        guard(lm, made(lm, 60.0), strict=True)
    assert all(torch.equal(old, new) for old, new in zip(before, lm.model.parameters(), strict=True))


def test_an_edit_that_breaks_the_arithmetic_is_seen_not_raised() -> None:
    lm = golden_lm()
    broken = made(lm, 1.0)
    (name,) = broken.updates
    update = broken.updates[name]
    nan = Edit.of(lm, {name: LowRank(update.left * math.nan, update.right)}, broken.origins)
    health = guard(lm, nan)
    assert math.isinf(health.perplexity[1]) and health.missed == ("John Holzu comes from",)
    assert any("NaN or infinite" in warning for warning in health.warnings)


def test_each_threshold_gives_its_own_warning() -> None:
    good = Health(relative_norm={"w": 0.1}, perplexity=(10.0, 10.1), repetition=(0.1, 0.1))
    limits = Thresholds(relative_norm=0.5, perplexity_ratio=1.1, repetition=0.1)
    assert judged(good, limits).ok
    for changed, word in (
        (Health(relative_norm={"w": 0.6}, perplexity=(10.0, 10.0), repetition=(0.0, 0.0)), "norm"),
        (Health(relative_norm={"w": math.nan}, perplexity=(10.0, 10.0), repetition=(0.0, 0.0)), "norm"),
        (Health(relative_norm={}, perplexity=(10.0, 11.2), repetition=(0.0, 0.0)), "Perplexity"),
        (Health(relative_norm={}, perplexity=(10.0, 10.0), repetition=(0.1, 0.3)), "repeats"),
    ):
        (warning,) = judged(changed, limits).warnings
        assert word in warning


def test_the_guard_says_what_the_check_says() -> None:
    lm = golden_lm()
    for edit in (nothing(lm, "Denver"), nothing(lm, "Vienna"), made(lm, 60.0)):
        assert guard(lm, edit).ok is check(lm, edit, texts=False).ok


def test_thresholds_are_numbers() -> None:
    with pytest.raises(SettingError, match="from 0 to 1"):
        Thresholds(neighbor=80)
    with pytest.raises(SettingError, match="0 or more"):
        Thresholds(perplexity_ratio=math.nan)


def test_held_out_text_can_be_given() -> None:
    lm = golden_lm()
    health = guard(lm, nothing(lm, "Denver"), held_out=TEXTS)
    assert health.held_out == "given text" and health.perplexity[0] == pytest.approx(
        perplexity(lm, TEXTS), rel=tolerance.of_log_probability(lm)
    )
    with pytest.raises(SettingError, match="no held-out text"):
        guard(lm, nothing(lm, "Denver"), held_out=[" "])


def test_a_model_that_cannot_read_english_is_measured_on_its_own_text() -> None:
    lm = golden_lm()
    health = guard(lm, nothing(lm, "Denver"))
    assert health.held_out == "the model's own text" and health.perplexity[0] < 100


def test_an_edit_for_another_model_is_not_measured() -> None:
    with pytest.raises(EditMismatch):
        guard(tiny("llama"), made(golden_lm()))


def test_an_edit_that_misses_its_target_says_so() -> None:
    from engram.editing import FT, edit

    lm = golden_lm()
    fact = Fact("John Holzu", "{} comes from", "Vienna", "Denver")
    weak = edit(lm, fact, method=FT(layer=1, steps=1, lr=1e-6))
    assert any("does not say 'Vienna'" in note for note in weak.notes)
    strong = edit(lm, fact, method=FT(layer=1))
    assert not any("does not say" in note for note in strong.notes)


def test_it_shows_signs_of_life() -> None:
    lm, told = golden_lm(), set[str]()
    guard(lm, made(lm), progress=lambda what, _done, _total: told.add(what))
    assert told == {"checking"}
