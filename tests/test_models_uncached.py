"""Models that cannot continue from a cache are run whole: slower, never another text or score."""

from typing import Any

import pytest
import tolerance
import torch
from families import FAMILIES, golden_lm, tiny

import engram
from engram.errors import UnsupportedModel
from engram.models import LM, prefill
from engram.models.generation import Generation, generate_batch
from engram.models.runs import go_on, read
from uncached import uncached

PROMPTS = ["John Holzu took lessons in playing the", "Mary", "The plans for Pekelven Cathedral were"]
FACT = engram.Fact("Pekelven Cathedral", "The plans for {} were made by", "harp")
every_one = pytest.mark.parametrize("name", ["plain", "strict", "mamba"])


def plain_text(lm: LM, prompt: str, tokens: int) -> str:
    ids = lm.encode(prompt).ids
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, lm.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return lm.tokenizer.decode(ids[0], skip_special_tokens=True)


def plain_score(lm: LM, prompt: str, target: str) -> float:
    whole, head = lm.encode(f"{prompt} {target}").ids, lm.encode(prompt).ids.shape[1]
    with torch.no_grad():
        logp = lm.model(whole).logits[0].log_softmax(-1)
    places = range(head, whole.shape[1])
    return -sum(float(logp[i - 1, whole[0, i]]) for i in places) / len(places)


@every_one
def test_texts_are_those_of_whole_passes(name: str) -> None:
    lm = uncached(name)
    assert not lm.can_continue
    assert not lm.can_resume
    how = Generation(max_new_tokens=6, beyond_end=True)
    assert generate_batch(lm, PROMPTS, how) == [plain_text(lm, prompt, 6) for prompt in PROMPTS]


@every_one
@pytest.mark.parametrize("batch_size", [64, 1])
def test_scores_are_those_of_whole_passes(name: str, batch_size: int) -> None:
    lm, targets = uncached(name), ["New York", "harp"]
    wanted = torch.tensor([[plain_score(lm, prompt, target) for target in targets] for prompt in PROMPTS])
    found = lm.score(PROMPTS, targets, batch_size=batch_size)
    torch.testing.assert_close(found, wanted, atol=tolerance.of_log_probability(lm), rtol=0)


@every_one
def test_what_it_keeps_is_asked_in_vain(name: str) -> None:
    lm = uncached(name)
    with pytest.raises(UnsupportedModel, match="keeps no keys and values"):
        prefill(lm, lm.encode(PROMPTS[0]).ids)


def test_padding_on_the_left_is_refused_where_the_mask_is_not_heeded() -> None:
    lm, batch = uncached("plain"), golden_lm().encode(PROMPTS, padding_side="left")
    with pytest.raises(UnsupportedModel, match="does not heed an attention mask"):
        lm.forward(batch.ids, mask=batch.mask)
    alone = lm.forward(batch.ids[:1], mask=batch.mask[:1])  # nothing is padded here
    assert torch.isfinite(alone).all()
    assert uncached("mamba").heeds_mask


@every_one
def test_it_is_traced_by_plain_passes(name: str) -> None:
    lm = uncached(name)
    found = engram.trace(lm, FACT, noise=0.25, samples=2)
    assert torch.isfinite(found.effect("mlp")).all()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_continues(family: str) -> None:
    assert tiny(family).can_continue


def test_a_cache_that_is_kept_and_not_read_is_found_out() -> None:
    """Keys and values are handed back as if all were well; every later pass sees its own tokens only."""
    model = golden_lm().model
    before = model.forward

    def forward(input_ids: Any = None, past_key_values: Any = None, **options: Any) -> Any:
        fresh = past_key_values is None or past_key_values.get_seq_length() == 0
        for name in () if fresh else ("attention_mask", "position_ids"):
            options.pop(name, None)
        return before(input_ids, past_key_values=past_key_values if fresh else None, **options)

    wanted = generate_batch(golden_lm(), PROMPTS[:1], Generation(max_new_tokens=6))
    model.forward = forward
    try:
        lm = LM(model, golden_lm().tokenizer)
        assert not lm.can_continue
        assert generate_batch(lm, PROMPTS[:1], Generation(max_new_tokens=6)) == wanted
    finally:
        del model.forward


def test_a_reading_goes_on_more_than_once_where_that_is_said() -> None:
    for lm in (golden_lm(), uncached("plain")):
        ids = lm.encode(PROMPTS[0]).ids
        with torch.no_grad():
            whole = lm.forward(ids)
            first = read(lm, ids[:, :3])
            for _ in range(2):
                again = go_on(lm, first, ids[:, 3:], again=True)
                torch.testing.assert_close(again.logits, whole[:, 3:], atol=tolerance.of_logits(lm), rtol=0)
            on = go_on(lm, go_on(lm, first, ids[:, 3:5]), ids[:, 5:], keep=1)
        torch.testing.assert_close(on.logits, whole[:, -1:], atol=tolerance.of_logits(lm), rtol=0)
        assert on.mask.shape == ids.shape


def test_a_short_text_beside_a_long_prompt_needs_no_further_positions() -> None:
    """A row that has all its tokens stands still while others go on."""
    lm = tiny("gpt2")
    long = " ".join(["the"] * 50)
    assert lm.encode(long).ids.shape[1] < 60 < lm.max_positions
    together = generate_batch(lm, [long, "Mary"], Generation(beyond_end=True), limits=[2, 30])
    alone = generate_batch(lm, ["Mary"], Generation(beyond_end=True, max_new_tokens=30))
    assert together[1] == alone[0]
