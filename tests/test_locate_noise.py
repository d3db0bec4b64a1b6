"""How subjects are corrupted: settings, σ, draws, replacement, other subjects."""

from typing import Any

import numpy as np
import pytest
import tolerance
import torch
from families import golden_lm

from engram.errors import FactError, SettingError
from engram.facts import Fact
from engram.locate import Noise, Swap, subject_sigma, trace
from engram.locate.tracing.corruption import corrupt
from engram.locate.tracing.noise import builtin_subjects, draw, noise_from, parse_noise
from engram.models import Site, record
from engram.models.continuations import asked

FACT = Fact("Kara 3000", "The maker of {} is")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3sigma", Noise()),
        ("2.5 σ", Noise(amount=2.5)),
        (0.1, Noise(amount=0.1, unit="absolute")),
        ("0.1", Noise(amount=0.1, unit="absolute")),
        ("uniform:0.25", Noise(kind="uniform", amount=0.25, unit="absolute")),
        ("uniform:3sigma", Noise(kind="uniform")),
        ("covariance", Noise(kind="covariance", amount=1.0)),
        ("replace:3sigma", Noise(replace=True)),
        ("replace:uniform:1e-1", Noise(kind="uniform", amount=0.1, unit="absolute", replace=True)),
        ("swap", Swap()),
        ("swap:Eiffel Tower|Big Ben", Swap(subjects=("Eiffel Tower", "Big Ben"))),
    ],
)
def test_noise_is_understood(text: Any, wanted: Any) -> None:
    assert parse_noise(text) == wanted
    assert noise_from(wanted.record()) == wanted


@pytest.mark.parametrize("text", ["gausian:3", "", "uniform:a", "3tau", "replace:", -1.0, float("nan"), "uniform:1:2"])
def test_bad_noise_is_refused_with_examples(text: Any) -> None:
    if text in ("", "replace:"):
        assert parse_noise(text).amount == 3  # nothing said: the default
        return
    with pytest.raises(SettingError, match="noise") as caught:
        parse_noise(text)
    if text == "gausian:3":
        assert "Did you mean 'gaussian'" in str(caught.value)


def test_sigma_is_the_spread_of_subject_tokens_embeddings() -> None:
    lm = golden_lm()
    ids = [i for subject in ("Kara 3000", "John Holzu") for i in lm.tokenizer(subject)["input_ids"]]
    values = lm.embed.weight.detach()[ids]
    wanted, rounding = float(values.std()), tolerance.of_sum(values.numel())
    assert subject_sigma(lm, ["Kara 3000", "John Holzu"]) == pytest.approx(wanted, rel=rounding)
    assert 0.5 * wanted < subject_sigma(lm) < 2 * wanted  # the built-in list
    found = trace(lm, FACT, sites="state", noise=Noise(amount=2.0, subjects=("Kara 3000", "John Holzu")), samples=2)
    assert isinstance(found.noise, Noise)
    assert found.noise.amount == pytest.approx(2 * wanted, rel=rounding)
    assert found.noise.unit == "absolute"


def test_built_in_subjects_are_distinct() -> None:
    names = builtin_subjects()
    assert len(names) == len(set(names)) > 100


def test_published_draws() -> None:
    lm, noise = golden_lm(), Noise(amount=0.5, unit="absolute")
    random = np.random.RandomState(1)
    first, second = (random.randn(10, 3, 160) * 0.5 for _ in range(2))
    drawn = draw(lm, noise, samples=10, tokens=3, draws="published", seed=7)
    assert drawn.dtype == torch.float64
    np.testing.assert_array_equal(drawn.numpy(), first)
    again = draw(lm, noise, samples=10, tokens=3, draws="published", seed=0, second=True)
    np.testing.assert_array_equal(again.numpy(), second)


def test_seeded_draws_depend_on_the_seed_alone() -> None:
    lm, noise = golden_lm(), Noise(amount=0.5, unit="absolute")
    one, same, other = (draw(lm, noise, samples=200, tokens=3, draws="seeded", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.5, rel=0.02)


def test_uniform_noise_keeps_within_its_bounds() -> None:
    noise = Noise(kind="uniform", amount=0.25, unit="absolute")
    drawn = draw(golden_lm(), noise, samples=50, tokens=3, draws="seeded", seed=0)
    assert 0.24 < float(drawn.abs().max()) <= 0.25
    assert float(drawn.std()) == pytest.approx(0.25 / 3**0.5, rel=0.02)


def test_covariance_noise_has_the_embeddings_covariance() -> None:
    lm = golden_lm()
    drawn = draw(lm, Noise(kind="covariance", amount=1.0), samples=4000, tokens=2, draws="seeded", seed=0)
    found = drawn.flatten(0, 1).double().T.cov()
    wanted = lm.embed.weight.detach().double().T.cov(correction=0)
    assert float((found - wanted).norm() / wanted.norm()) < 0.2
    assert float((found - torch.eye(160) * wanted.trace() / 160).norm() / wanted.norm()) > 0.2, "not just isotropic"


@pytest.mark.parametrize("replace", [False, True])
def test_noise_is_added_or_put_in_place_on_the_subject_only(replace: bool) -> None:
    lm = golden_lm()
    span = lm.subject_span(FACT)
    noise = Noise(amount=0.5, unit="absolute", replace=replace)
    corruption, _ = corrupt(lm, FACT, asked(lm, FACT), noise, samples=2, draws="seeded", seed=0)
    clean = lm.embed(lm.encode(FACT.text).ids).detach()
    with corruption.applied(lm), record(lm, [Site("embed")]) as seen, torch.no_grad():
        lm.forward(corruption.ids)
    drawn = draw(lm, noise, samples=2, tokens=len(span), draws="seeded", seed=0)
    wanted = clean.repeat(2, 1, 1)
    wanted[:, span.start : span.stop] = drawn if replace else wanted[:, span.start : span.stop] + drawn
    torch.testing.assert_close(seen[Site("embed")], wanted)


def test_replacing_noise_uses_the_same_corruption_for_the_baseline() -> None:
    found = trace(golden_lm(), FACT, sites="state", noise="replace:0.3", tokens=[0], samples=3)
    assert not found.effect().any()  # a token before the subject: exactly the corrupted run
    adding = trace(golden_lm(), FACT, sites="state", noise=0.3, tokens=[0], samples=3)
    assert found.corrupted != adding.corrupted


def test_swapping_subjects() -> None:
    lm = golden_lm()
    other = Fact("Lara 3000", FACT.prompt)
    if lm.encode(other.text).ids.shape != lm.encode(FACT.text).ids.shape:
        other = Fact("Kara 2000", FACT.prompt)
    found = trace(lm, FACT, sites="state", noise=Swap(subjects=(other.subject,)))
    ids = lm.encode(other.text).ids
    with torch.no_grad():
        probability = float(lm.forward(ids)[0, -1].softmax(-1)[found.answer_id])
    assert found.corrupted == pytest.approx(probability, abs=tolerance.of_probability(lm))
    assert found.baseline.shape == (1,)
    assert found.noise == Swap(subjects=(other.subject,))
    assert found.state[-1, -1] == pytest.approx(found.clean, abs=tolerance.of_probability(lm))
    assert torch.isnan(found.effect().standard_error).all()


def test_a_swap_chooses_subjects_of_equal_length() -> None:
    lm = golden_lm()
    found = trace(lm, FACT, sites="state", noise="swap", samples=3, tokens="last")
    assert isinstance(found.noise, Swap)
    assert 1 <= len(found.noise.subjects) <= 3
    for subject in found.noise.subjects:
        assert lm.encode(Fact(subject, FACT.prompt).text).ids.shape == lm.encode(FACT.text).ids.shape


def test_a_swap_of_unequal_length_is_refused() -> None:
    with pytest.raises(FactError, match="tokens"):
        trace(golden_lm(), FACT, noise="swap:The Very Long Name of a Thing")
    with pytest.raises(FactError, match="same tokens"):
        trace(golden_lm(), FACT, noise="swap:Kara 3000")
