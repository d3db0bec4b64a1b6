"""The fast path equals the plain one, on every family and however the work is divided."""

from typing import Any

import pytest
import tolerance
import torch
from families import FAMILIES, golden_lm, golden_tokenizer, tiny, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from engram.facts import Fact
from engram.locate import trace
from engram.locate.tracing import work
from engram.locate.tracing.climb import climb_once
from engram.locate.tracing.settings import TraceSettings
from engram.locate.tracing.staircase import Limits
from engram.locate.tracing.work import trace_with
from engram.models import LM
from test_locate_golden import CASES

FACT = Fact("Michael Morfa", "Today {} took lessons in")
WORDS = "John Zuholpe comes from the maker of Kara 3000 and took lessons".split()


def both(lm: LM, fact: Fact, **options: Any) -> None:
    chosen = TraceSettings.of(**{"noise": 0.5, "samples": 3, **options})
    fast, plain = trace_with(lm, fact, chosen), trace_with(lm, fact, chosen, plain=True)
    rounding = tolerance.of_log_probability(lm)
    torch.testing.assert_close(fast.baseline, plain.baseline, atol=rounding, rtol=0)
    for site, values in plain.samples.items():
        assert values.std() > 0, "nothing was restored"
        torch.testing.assert_close(fast.samples[site], values, atol=rounding, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_equals_plain_on_every_family(family: str) -> None:
    lm = tiny(family)
    assert lm.can_resume
    both(lm, FACT, window=2, metric="log_probability")
    both(lm, FACT, window=3, window_style="paper", severed="mlp", metric="log_probability")
    both(lm, FACT, sites=("state", "mlp"), window=1, severed="attn", metric="log_probability")


@settings(max_examples=25)
@given(
    head=st.integers(0, 3),
    tail=st.integers(0, 4),
    subject=st.integers(1, 2),
    window=st.integers(1, 8),
    style=st.sampled_from(["code", "paper"]),
    samples=st.integers(1, 3),
    severed=st.sampled_from([None, "mlp", "attn"]),
    budget=st.sampled_from([1, 200_000, 2_000_000, "1GiB"]),
    family=st.sampled_from(["gpt2", "gptj", "llama"]),
)
def test_fast_equals_plain_whatever_is_asked(
    head: int, tail: int, subject: int, window: int, style: Any, samples: int, severed: Any, budget: Any, family: str
) -> None:
    words = WORDS[: head + subject + tail]
    words[head] = "Holzu"
    prompt = " ".join([*words[:head], "{}", *words[head + subject :]])
    fact = Fact(" ".join(words[head : head + subject]), prompt)
    both(
        tiny(family),
        fact,
        window=window,
        window_style=style,
        samples=samples,
        severed=severed,
        memory_budget=budget,
        metric="log_probability",
    )


@pytest.mark.parametrize("merging", [0.0, 1e9])
def test_results_do_not_depend_on_tokens_per_pass_or_budget(merging: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, case = golden_lm(), CASES[4]
    fact = Fact.from_text(case["prompt"], case["subject"])
    wanted = trace(lm, fact, window=3, samples=2)
    starts: list[int] = []

    def limits(_lm: LM, length: int, **_: Any) -> Limits:
        return Limits(groups=[10_000] * (length + 1), seconds_per_block=merging, seconds_per_position=1e-9)

    def counted(*arguments: Any) -> Any:
        starts.append(arguments[2].start)
        return climb_once(*arguments)

    monkeypatch.setattr(work, "limits_of", limits)
    monkeypatch.setattr(work, "climb_once", counted)
    found = trace(lm, fact, window=3, samples=2)
    assert len(starts) == (1 if merging else len(found.tokens) - found.subject_range[0])
    monkeypatch.undo()
    tight = trace(lm, fact, window=3, samples=2, memory_budget=1)
    for site, values in wanted.samples.items():
        torch.testing.assert_close(found.samples[site], values, atol=tolerance.of_probability(lm), rtol=0)
        torch.testing.assert_close(tight.samples[site], values, atol=tolerance.of_probability(lm), rtol=0)


def test_a_model_that_cannot_resume_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    assert lm.can_resume
    wanted = trace(lm, FACT, noise=0.5, window=2)
    monkeypatch.setitem(lm.__dict__, "can_resume", False)
    monkeypatch.setattr(work, "climb_once", None)
    found = trace(lm, FACT, noise=0.5, window=2)
    for site, values in wanted.samples.items():
        torch.testing.assert_close(found.samples[site], values, atol=tolerance.of_probability(lm), rtol=0)


def test_what_a_model_can_do_is_not_asked_while_its_outputs_are_changed() -> None:
    lm = LM(tiny_model("gpt2"), golden_tokenizer())  # of which nothing is known yet
    trace(lm, FACT, noise=0.5, samples=2)
    assert lm.can_resume and lm.can_skip_last and lm.adds_mlp_to_state


def test_tokens_before_the_subject_have_no_effect() -> None:
    lm, case = golden_lm(), CASES[4]
    fact = Fact.from_text(case["prompt"], case["subject"])
    begin = case["subject_range"][0]
    assert begin > 0
    published, rounding = torch.tensor(case["state"])[:begin], tolerance.of_probability(lm)
    torch.testing.assert_close(published, torch.full_like(published, case["corrupted"]), atol=rounding, rtol=0)
    found = trace(lm, fact, window=3, metric="log_probability")
    for site in found.samples:
        assert not found.effect(site)[:begin].any()
        assert found.effect(site)[begin:].any()


def test_restoring_the_last_state_of_the_last_token_gives_the_clean_answer() -> None:
    lm = golden_lm()
    found = trace(lm, Fact.from_text(CASES[0]["prompt"], CASES[0]["subject"]), sites="state")
    assert found.state[-1, -1] == pytest.approx(found.clean, abs=tolerance.of_probability(lm))
    assert not found.effect()[:-1, -1].any()


def test_half_precision() -> None:
    lm = tiny("gpt2")
    half = LM(tiny_model("gpt2").to(torch.bfloat16), golden_tokenizer())
    wanted, found = (trace(m, FACT, noise=0.5, window=2, metric="log_probability") for m in (lm, half))
    for site in wanted.samples:
        torch.testing.assert_close(found.scores[site], wanted.scores[site], atol=0.1, rtol=0)


def test_progress_is_reported_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    trace(tiny("gpt2"), FACT, noise=0.5, window=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen)
