"""What `trace` returns: numbers, options, files, messages."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tolerance
import torch
from families import golden_lm, golden_tokenizer, tiny, tiny_model

from engram.errors import DataError, FactError, NumericalError, PromptTooLong, SettingError
from engram.facts import Fact
from engram.locate import CausalTrace, Effect, trace, trace_many, usual_window, window_bounds
from engram.locate.tracing.budget import parse_budget
from engram.models import LM

FACT = Fact("Kara 3000", "The maker of {} is")


def test_window_conventions() -> None:
    kwargs: dict[str, Any] = {"window": 10, "n_layers": 48}
    assert window_bounds(20, **kwargs) == (15, 25)
    assert window_bounds(20, **kwargs, style="paper") == (16, 26)  # [l-4, l+5]
    assert window_bounds(0, **kwargs) == (0, 5)
    assert window_bounds(47, **kwargs) == (42, 48)
    for window in (1, 3):  # odd windows are the same in both
        assert window_bounds(7, window=window, n_layers=8) == window_bounds(7, window=window, n_layers=8, style="paper")
    assert window_bounds(3, window=1, n_layers=8) == (3, 4)


def test_the_usual_window_is_the_papers_in_the_papers_model_and_less_in_smaller_ones() -> None:
    assert [usual_window(n) for n in (1, 2, 8, 10, 12, 18, 23, 24, 28, 48, 96)] == [1, 1, 2, 3, 3, 5, 6, 10, 10, 10, 10]


def test_the_window_fits_the_model_where_none_is_given_and_its_number_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = golden_lm()
    options: dict[str, Any] = {"tokens": "subject_last", "samples": 1, "noise": 0.25}
    with caplog.at_level(logging.WARNING):
        found, asked = trace(lm, FACT, **options), trace(lm, FACT, window=2, **options)
        average = trace_many(lm, [FACT], out=tmp_path / "run", **options)
    assert not caplog.records
    assert found.settings["window"] == average.window == average.settings["window"] == usual_window(lm.n_layers) == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["window"] == 2
    torch.testing.assert_close(found.mlp, asked.mlp, atol=tolerance.of_probability(lm), rtol=0)
    assert trace(lm, FACT, window=None, **options).settings == found.settings


def test_metrics_agree_with_each_other() -> None:
    lm = golden_lm()
    base: dict[str, Any] = {"sites": "state", "noise": 0.25, "samples": 3}
    p = trace(lm, FACT, **base)
    logp = trace(lm, FACT, metric="log_probability", **base)
    rounding = tolerance.of_log_probability(lm)
    torch.testing.assert_close(logp.samples["state"].exp(), p.samples["state"], atol=rounding / 4, rtol=0)
    second = lm.next_tokens(FACT.text, k=2)[1][0].strip()
    difference = trace(lm, FACT.with_target(second), metric="logit_difference", **base)
    other = trace(lm, Fact(FACT.subject, FACT.prompt, original=second), metric="log_probability", **base)
    torch.testing.assert_close(
        difference.samples["state"], logp.samples["state"] - other.samples["state"], atol=2 * rounding, rtol=0
    )
    with pytest.raises(FactError, match="second answer"):
        trace(lm, FACT, metric="logit_difference")


def test_effect_and_its_standard_error() -> None:
    found, rounding = trace(golden_lm(), FACT, window=3, noise=0.25, samples=7), tolerance.of_sum(7)
    for site in ("state", "mlp", "attn"):
        effect = found.effect(site)
        assert isinstance(effect, Effect)
        assert type(effect.mean()) is torch.Tensor
        torch.testing.assert_close(effect.clone(), found.scores[site] - found.corrupted, atol=rounding, rtol=0)
        differences = found.samples[site] - found.baseline
        torch.testing.assert_close(effect.standard_error, differences.std(-1) / 7**0.5, atol=rounding, rtol=0)
        assert torch.equal(getattr(found, site), found.scores[site])
    assert found.total_effect == pytest.approx(found.clean - found.corrupted)


def test_only_the_tokens_asked_for() -> None:
    lm = golden_lm()
    every = trace(lm, FACT, window=3, noise=0.25, samples=2)
    begin, end = every.subject_range
    length = len(every.tokens)
    for tokens, rows in {
        "subject": range(begin, end),
        "subject_last": [end - 1],
        "last": [length - 1],
        (0, -1): [0, length - 1],
    }.items():
        some = trace(lm, FACT, window=3, noise=0.25, samples=2, tokens=tokens)  # type: ignore[arg-type]
        assert some.positions == tuple(rows)
        torch.testing.assert_close(some.mlp, every.mlp[list(rows)], atol=tolerance.of_probability(lm), rtol=0)
    with pytest.raises(SettingError, match=f"0 to {length - 1}"):
        trace(lm, FACT, tokens=99)


def test_the_answer_is_what_the_fact_names_else_what_the_model_says(caplog: pytest.LogCaptureFixture) -> None:
    lm = golden_lm()
    said = lm.next_tokens(FACT.text, k=1)[0][0]
    plain = trace(lm, FACT.with_target("Rome"), sites="state", tokens="last", samples=1)
    assert plain.answer == plain.predicted == said
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        wrong = trace(lm, Fact(FACT.subject, FACT.prompt, original="Denver"), sites="state", tokens="last", samples=1)
    assert wrong.answer == " Denver"
    assert wrong.predicted == said
    assert "does not answer 'Denver'" in caplog.text


def test_save_and_load(tmp_path: Path) -> None:
    found = trace(golden_lm(), FACT, window=3, noise="uniform:0.25", samples=3, tokens="subject")
    folder = found.save(tmp_path / "deep" / "trace")
    assert sorted(p.name for p in folder.iterdir()) == ["trace.json", "trace.safetensors"]
    again = CausalTrace.load(folder)
    assert again.record() == found.record()
    assert again.noise == found.noise
    assert torch.equal(again.baseline, found.baseline)
    for site, values in found.samples.items():
        assert torch.equal(again.samples[site], values)
    assert json.loads((folder / "trace.json").read_text())["corrupted"] == pytest.approx(found.corrupted)
    with pytest.raises(DataError, match="holds no trace"):
        CausalTrace.load(tmp_path)
    (folder / "trace.json").write_text("{")
    with pytest.raises(DataError, match="broken"):
        CausalTrace.load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "stat"}, "Did you mean 'state'"),
        ({"sites": ()}, "No sites"),
        ({"window": 0}, "1 or more"),
        ({"window": 100}, "Choose 1 to 8"),
        ({"window_style": "papre"}, "Did you mean 'paper'"),
        ({"samples": 0}, "1 or more"),
        ({"draws": "random"}, "Available: published, seeded"),
        ({"metric": "probabilty"}, "Did you mean 'probability'"),
        ({"tokens": "subject_lst"}, "Did you mean 'subject_last'"),
        ({"tokens": ()}, "No tokens"),
        ({"severed": "state"}, "Available: attn, mlp"),
        ({"severed": "mlp", "sites": ("mlp",)}, "leave 'mlp' out"),
        ({"noise": "unifrom:1"}, "Did you mean 'uniform'"),
        ({"against": "Rome"}, "logit_difference"),
        ({"memory_budget": "much"}, "no size"),
    ],
)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        trace(golden_lm(), FACT, **options)


@pytest.mark.parametrize(("window", "says"), [(10, "larger than, and clipped to, the model"), (5, "more than half of")])
def test_a_window_that_says_little_is_named(caplog: pytest.LogCaptureFixture, window: int, says: str) -> None:
    with caplog.at_level(logging.WARNING):
        trace(golden_lm(), FACT, sites="mlp", window=window, tokens="last", samples=1)
    assert says in caplog.text
    assert "window=2" in caplog.text


def test_a_usual_window_is_not_remarked_upon(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trace(golden_lm(), FACT, sites="mlp", window=4, tokens="last", samples=1)
        trace(golden_lm(), FACT, sites="state", window=10, tokens="last", samples=1)
    assert "window" not in caplog.text


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_answer() -> None:
    plain, spaced = (
        trace(golden_lm(), Fact("Kara", prompt), sites="state", tokens="last", samples=1)
        for prompt in ("The maker of {} is", "The maker of {} is ")
    )
    assert (spaced.tokens, spaced.answer) == (plain.tokens, plain.answer)
    assert torch.equal(spaced.state, plain.state)


def test_severing_leaves_its_site_out_of_the_default_ones() -> None:
    found = trace(golden_lm(), FACT, severed="mlp", window=3, tokens="last", samples=1)
    assert list(found.scores) == ["state", "attn"]
    with pytest.raises(SettingError, match="was not traced"):
        _ = found.mlp


def test_prompts_that_do_not_fit() -> None:
    with pytest.raises(PromptTooLong):
        trace(tiny("gpt2"), Fact("Kara", "{} " + "is " * 80))


def test_nan_names_the_layer() -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.down_proj.weight.data[:] = float("nan")
    with pytest.raises(NumericalError, match="state of layer 2"):
        trace(LM(model, golden_tokenizer()), FACT, window=1)


def test_memory_budgets() -> None:
    cpu = torch.device("cpu")
    assert parse_budget(None, cpu) == 1 << 30
    assert parse_budget("2GiB", cpu) == 2 << 30
    assert parse_budget("1.5 MB", cpu) == 1_500_000
    assert parse_budget(12345, cpu) == 12345
    for bad in ("GiB", "-1", 0, -5, "1 parsec"):
        with pytest.raises(SettingError):
            parse_budget(bad, cpu)
