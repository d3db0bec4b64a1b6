"""Tokens, offsets, subjects, scores and generated text."""

import pytest
import tolerance
import torch
from families import golden_lm, golden_tokenizer, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from engram.errors import FactError, PromptTooLong, SettingError, SubjectNotFound, TemplateError, TokenizerError
from engram.facts import Fact
from engram.models import LM
from engram.models.continuations import joined
from engram.models.encoding import encode

WORDS = "The Space Needle is located in the city of Seattle Café Zürich 東京 Ωmega tower".split()


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's habits: a BOS token, and '▁' joined to the word after a space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>"], vocab_size=200, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def merged(tokenizer: PreTrainedTokenizerFast, fact: Fact, side: str = "right") -> str:
    encoded = encode(tokenizer, [fact.text, "filler " * 12], padding_side=side)
    span = encoded.span(0, *fact.subject_chars)
    begin, end = encoded.offsets[0][span[0]][0], encoded.offsets[0][span[-1]][1]
    return fact.text[begin:end]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokenizer", [golden_tokenizer(), metaspace_tokenizer()], ids=["bytes", "bos+metaspace"])
@given(data=st.data())
def test_a_subject_span_covers_exactly_the_subject(
    tokenizer: PreTrainedTokenizerFast, side: str, data: st.DataObject
) -> None:
    words = st.lists(st.sampled_from(WORDS), min_size=0, max_size=5)
    head, subject, tail = data.draw(words), data.draw(words.filter(bool)), data.draw(words)
    fact = Fact(" ".join(subject), " ".join([*head, "{}", *tail]))
    assert merged(tokenizer, fact, side) == fact.subject


def test_a_repeated_subject_is_the_last_one_unless_told() -> None:
    text = "Paris is Paris, yes Paris is in"
    assert Fact.from_text(text, "Paris").subject_chars == (20, 25)
    assert Fact.from_text(text, "Paris", occurrence=1).subject_chars == (0, 5)
    assert golden_lm().subject_span(Fact.from_text(text, "Paris", occurrence=1))[0] == 0
    with pytest.raises(SettingError, match="3 time"):
        Fact.from_text(text, "Paris", occurrence=4)


def test_tokens_that_merge_with_punctuation_count_as_the_subjects() -> None:
    lm = golden_lm()
    span = lm.subject_span(Fact("Needle", "(Space {}), it is in"))
    text = "".join(lm.tokens(lm.encode("(Space Needle), it is in").ids[0][list(span)]))
    assert "Needle" in text


@pytest.mark.parametrize("prompt", ["is in the city of", "{} and {} are in"])
def test_a_template_needs_exactly_one_place_for_the_subject(prompt: str) -> None:
    with pytest.raises(TemplateError, match="exactly one"):
        Fact("Space Needle", prompt)


def test_empty_subjects_and_prompts_are_refused() -> None:
    with pytest.raises(FactError, match="subject is empty"):
        Fact(" ", "{} is in")
    with pytest.raises(FactError, match="prompt is empty"):
        Fact.from_text("", "Paris")


def test_a_missing_subject_names_the_closest_words() -> None:
    with pytest.raises(SubjectNotFound, match="Did you mean 'Space Needle'"):
        Fact.from_text("The Space Needle is in", "Space Noodle")


def test_a_prompt_longer_than_the_model_is_refused() -> None:
    with pytest.raises(PromptTooLong, match="128 positions"):
        golden_lm().encode("very " * 200)
    with pytest.raises(PromptTooLong):
        golden_lm().subject_span(Fact("very " * 200, "{} is in"))


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TokenizerError, match="use_fast"):
        LM(tiny_model("gpt2"), Slow())


def test_one_space_stands_between_prompt_and_continuation() -> None:
    assert joined("is in", "Rome") == joined("is in", " Rome") == joined("is in ", "Rome") == "is in Rome"


def test_score_is_the_mean_over_the_continuations_tokens() -> None:
    lm = golden_lm()
    ids = lm.encode("John Holzu comes from New York").ids
    length = lm.encode("John Holzu comes from").ids.shape[1]
    with torch.no_grad():
        logp = lm.forward(ids)[0].log_softmax(-1)
    wanted = -logp[length - 1 : -1].gather(1, ids[0, length:, None]).mean()
    assert ids.shape[1] - length > 1
    found = lm.score("John Holzu comes from", ["New York"])[0, 0]
    torch.testing.assert_close(found, wanted, atol=tolerance.of_log_probability(lm), rtol=0)


def test_an_empty_continuation_is_refused() -> None:
    with pytest.raises(FactError, match="empty"):
        golden_lm().score("John Holzu comes from", ["  "])
    with pytest.raises(FactError, match="equal length"):
        golden_lm().score(["a", "b"], [["x"], ["y", "z"]])


def test_next_tokens_are_sorted_probabilities() -> None:
    top = golden_lm().next_tokens("John Holzu comes from", k=3)
    assert top[0][0] == " Denver"
    assert top[0][1] == pytest.approx(0.84141046, abs=tolerance.of_probability(golden_lm()))
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)


def test_sampled_text_depends_on_seed_and_prompt_but_not_on_the_batch() -> None:
    lm = golden_lm()
    alone = lm.generate("John Holzu", top_k=5, seed=3)
    prompts = ["Mary Holzu was born in the city of", "John Holzu", "John Holzu"]
    together = lm.generate(prompts, top_k=5, seed=3)
    assert together[1] == alone
    assert together[2] != alone, "the same prompt twice gives two texts"
    assert lm.generate("John Holzu", top_k=5, seed=4) != alone
    assert all(text.startswith(prompt) for text, prompt in zip(together, prompts, strict=True))


def test_sampling_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    golden_lm().generate("John Holzu", top_k=5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"max_new_tokens": 0}])
def test_generation_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="1 or more"):
        golden_lm().generate("John", **wrong)


def test_wrapping_changes_neither_model_nor_tokenizer() -> None:
    lm = golden_lm()
    before = (lm.tokenizer.padding_side, lm.tokenizer.pad_token, len(lm.tokenizer))
    lm.score(["John", "Mary Holzu comes"], ["from"])
    assert (lm.tokenizer.padding_side, lm.tokenizer.pad_token, len(lm.tokenizer)) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert not any("forward" in m.__dict__ for m in lm.model.modules())
