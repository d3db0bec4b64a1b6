"""The logit lens: the model's own norm and unembedding, on every state."""

from typing import Any

import pytest
import tolerance
import torch
from families import FAMILIES, golden_lm, tiny
from real import real_model

from engram.errors import SettingError, UnsupportedModel
from engram.facts import Fact
from engram.locate.lens import READINGS, Lens
from engram.models import Site, record

FACT = Fact("Michael Morfa", "Today {} took lessons in")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_says_what_the_model_says(family: str) -> None:
    lm = tiny(family)
    ids = lm.encode(FACT.text).ids
    with torch.no_grad():
        logits = lm.forward(ids)[0].float()
    found = Lens(top=3)(lm, FACT)
    p = logits.softmax(-1)
    answer, rounding = int(logits[-1].argmax()), tolerance.of_probability(lm)
    torch.testing.assert_close(found["top"].scores[:, -1], p.max(-1).values, atol=rounding, rtol=0)
    torch.testing.assert_close(found["probability"].scores[:, -1], p[:, answer], atol=rounding, rtol=0)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(found["entropy"].scores[:, -1], entropy, atol=1e-4, rtol=0)
    assert float(found["rank"].scores[-1, -1]) == 1
    assert float(found["kl"].scores[:, -1].abs().max()) < 1e-4
    for position in range(ids.shape[1]):
        assert found.words[position][-1][0] == lm.tokens([int(logits[position].argmax())])[0]


def test_lower_layers_are_the_models_own_norm_and_unembedding() -> None:
    lm = tiny("gpt2")
    ids = lm.encode(FACT.text).ids
    with torch.no_grad(), record(lm, [Site("state", 1)]) as seen:
        lm.forward(ids)
        transformer = lm.model.transformer
        wanted = lm.model.lm_head(transformer.ln_f(seen[Site("state", 1)]))[0]
    found = Lens()(lm, FACT)
    torch.testing.assert_close(
        found["top"].scores[:, 1], wanted.softmax(-1).max(-1).values, atol=tolerance.of_probability(lm), rtol=0
    )
    logp = wanted.log_softmax(-1)
    answer = int(lm.forward(ids)[0, -1].argmax())
    assert found["rank"].scores[:, 1].tolist() == (1 + (logp > logp[:, answer, None]).sum(-1)).tolist()
    assert float(found["kl"].scores[:, 1].min()) > 0


def test_the_answer_is_what_the_fact_names_else_what_the_model_says() -> None:
    lm = golden_lm()
    says, other = (token.strip() for token, _ in lm.next_tokens(FACT.text, k=2))
    named = Lens()(lm, Fact(FACT.subject, FACT.prompt, original=other))
    assert float(named["rank"].scores[-1, -1]) == 2
    assert other[:1] in named.notes[0]
    assert float(Lens()(lm, FACT)["rank"].scores[-1, -1]) == 1
    assert Lens()(lm, Fact(FACT.subject, FACT.prompt, original=says)).to_dict() == Lens()(lm, FACT).to_dict()


@pytest.mark.parametrize("resuming", [True, False])
def test_what_is_generated_is_what_is_generated_without_it(resuming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    assert lm.can_resume
    text = lm.generate(FACT.text, max_new_tokens=4)
    monkeypatch.setitem(lm.__dict__, "can_resume", resuming)
    found = Lens(new_tokens=4)(lm, FACT)
    assert found.axes == ("reading", "layer", "token")
    said = [token for token in found.labels[2] if token != lm.tokenizer.eos_token]
    assert "".join(said).strip() == text.removeprefix(FACT.text).strip()
    assert [cell[0] for cell in found.words[-1]] == list(found.labels[2])
    assert found["rank"].scores[-1].tolist() == [1.0] * len(found.labels[2])
    first = Lens()(lm, FACT)
    torch.testing.assert_close(
        found["top"].scores[:, 0], first["top"].scores[-1], atol=tolerance.of_probability(lm), rtol=0
    )


def test_pictures_hold_words(tmp_path: Any) -> None:
    found = Lens(top=2)(golden_lm(), FACT)
    figure = found.plot(path=tmp_path / "lens.png")
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert {found.words[-1][-1][0].strip()} & drawn
    assert len(figure.axes) == 2  # one map and its bar
    assert found.words[-1][-1][0].strip()[:8] in str(found.__rich__())
    assert max(map(len, str(found.__rich__()).splitlines())) <= 80  # a line of words is broken by no terminal
    assert len(found.plot("rank").axes) == 2
    assert list(READINGS) == list(found.labels[0])
    generated = Lens(new_tokens=2)(golden_lm(), FACT)
    assert generated.plot().axes[0].get_xlabel() == "token"


def test_a_model_that_does_more_to_its_last_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    real = lm.forward
    monkeypatch.setattr(lm, "forward", lambda *a, **k: real(*a, **k) * 0.5)
    with pytest.raises(UnsupportedModel, match="more than a norm and an unembedding"):
        Lens()(lm, FACT)


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="top=0; it must be 1 or more"):
        Lens(top=0)
    with pytest.raises(SettingError, match="new_tokens=-1"):
        Lens(new_tokens=-1)


@pytest.mark.real
def test_a_real_model_finds_its_answer_in_the_upper_layers() -> None:
    lm = real_model("smollm2")
    found = Lens()(lm, Fact("France", "The capital of {} is", original="Paris"))
    ranks = found["rank"].scores[-1]
    assert float(ranks[-1]) <= 3
    assert float(ranks[0]) > 100
