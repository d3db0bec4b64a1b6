"""Scores, losses and answers equal a plain computation: tokenise the joined text once, softmax beyond the prompt."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import tolerance
import torch
from families import golden_tokenizer, tiny, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from real import real_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import engram
from engram.editing import FT, FTL, answers
from engram.editing.answers import Question, ask
from engram.editing.parts.prompts import Wrap, padded, rows_for
from engram.errors import FactError
from engram.evaluation import score_case
from engram.facts import Case, Fact
from engram.models import LM
from engram.models.continuations import Continuation, continuation_ids, continued
from engram.models.scoring import score_texts

WORDS = "The Space Needle is in the city of Rome Paris New York 東京は 🗼 (tower)".split()
ENDS = ["", " ", "  ", "\n", "\n\n", " \n", "\n ", "\t", " (", "[", ' "', "東京は", "🗼", " 👩‍🚀", "🗼\n", " <x>"]
ANSWERS = ["Rome", " Rome", "New York", "東京", "🗼", "(Rome)", "\nRome", "a", "\n\n Paris is"]

prompts = st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), st.sampled_from(ENDS)).map(
    lambda parts: " ".join(parts[0]) + parts[1]
)

pairs = st.lists(st.sampled_from(ANSWERS), min_size=2, max_size=2)


@cache
def byte_level() -> LM:
    return LM(tiny_model("gpt2", n_positions=256), golden_tokenizer(), name="bytes")


@cache
def metaspace(split: bool) -> LM:
    """SentencePiece's habits: a BOS token and '▁' for spaces; without `split` tokens may reach over words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "<x>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(special_tokens=special, vocab_size=420, show_progress=False)
    tokenizer.train_from_iterator(["The Space Needle is in the city of Rome\n\n Paris is\n New York"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    return LM(tiny_model("llama", max_position_embeddings=256), fast, name=f"metaspace-{split}")


@cache
def mini() -> LM:
    return engram.load("mini")


MODELS = [
    pytest.param(byte_level, id="bytes"),
    pytest.param(lambda: metaspace(True), id="metaspace"),
    pytest.param(lambda: metaspace(False), id="over words"),
    pytest.param(mini, id="mini"),
]


@torch.no_grad()
def plain(lm: LM, prompt: str, words: str) -> list[float]:
    """Log-probabilities of a continuation's tokens with transformers alone."""
    gap = "" if prompt[-1:].isspace() or words[:1].isspace() else " "
    text, edge = prompt + gap + words, len(prompt.rstrip(" "))
    out = lm.tokenizer(text, return_offsets_mapping=True)
    logp = lm.model(torch.tensor([out["input_ids"]])).logits[0].float().log_softmax(-1)
    found: list[float] = []
    for i, (begin, end) in enumerate(out["offset_mapping"]):
        piece = text[begin:end]
        if begin + len(piece.rstrip() or piece) > edge:
            found.append(float(logp[i - 1, out["input_ids"][i]]))
    return found


def mean(lm: LM, prompt: str, words: str) -> float:
    found = plain(lm, prompt, words)
    return -sum(found) / len(found)


def agree(lm: LM, prompts: list[str], answers: list[str]) -> None:
    """Everything that reads a continuation says what the plain computation says."""
    scores = lm.score(prompts, answers)
    for row, prompt in zip(scores.tolist(), prompts, strict=True):
        assert row == pytest.approx([mean(lm, prompt, answer) for answer in answers], abs=2e-4)
        fact = Fact.from_text("Ann, " + prompt, "Ann", target=answers[0], original=answers[-1])
        target = plain(lm, fact.text, answers[0])
        batch = padded(rows_for(lm, 0, fact, ["{}"], Wrap(), target=fact.target))
        logits = lm.forward(batch.ids, keep=len(target))[0].float().log_softmax(-1).detach()
        losses = logits[range(-len(target), 0), batch.rows[0].targets]
        assert losses.tolist() == pytest.approx(target, abs=2e-4)
        (answer,) = ask(lm, [Question(text=fact.text, target=answers[0], original=answers[-1])])
        assert answer.target == pytest.approx(math.exp(sum(target)), rel=1e-3)
        (rewrite,) = score_case(lm, Case(id="1", fact=fact))["rewrite"].tolist()
        assert rewrite == pytest.approx([mean(lm, fact.text, answers[0]), mean(lm, fact.text, answers[-1])], abs=2e-4)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=12)
@given(
    prompts=st.lists(prompts, min_size=1, max_size=3),
    answers=pairs,
)
def test_scores_losses_and_answers_equal_a_plain_computation(
    model: Callable[[], LM], prompts: list[str], answers: list[str]
) -> None:
    agree(model(), prompts, answers)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_a_trace_starts_from_the_answers_probability(model: Callable[[], LM], end: str) -> None:
    lm = model()
    fact = Fact("Needle", "The {} is in" + end, original="Rome")
    found = engram.trace(lm, fact, sites="state", tokens=[0], samples=1, noise=0.1)
    assert found.clean == pytest.approx(math.exp(plain(lm, fact.text, "Rome")[0]), rel=1e-3)


def test_a_prompts_line_break_is_read_once_and_scored_never() -> None:
    lm = byte_level()
    ids = lm.encode("The city is\nRome").ids[0].tolist()
    (line,) = lm.encode("\n").ids[0].tolist()
    assert ids.count(line) == 1
    found = continued(lm, [Continuation.after("The city is\n", "Rome")])
    assert found.before(0)[-1] == line and found.before(0) + found.ids(0) == ids
    fact = Fact("city", "The {} is\n", "Rome")
    assert FT(layer=1, steps=1)(lm, [fact]).records[0].losses[0] == pytest.approx(mean(lm, fact.text, "Rome"), abs=1e-4)
    assert FTL(layer=1, steps=1)(lm, [fact]).records[0].losses[0] == pytest.approx(
        mean(lm, fact.text, "Rome"), abs=1e-4
    )


@pytest.mark.parametrize("prompt", ["The city (", "The city is\n"])
def test_what_a_model_says_is_as_probable_as_it_stands(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space is put before words that the model itself wrote without one."""
    lm = byte_level()
    monkeypatch.setattr(answers, "generate_batch", lambda _lm, prompts, _how: [f"{p}Rome, the" for p in prompts])
    (answer,) = ask(lm, [Question(text=prompt)])
    assert answer.says == "Rome"
    ids = lm.encode(prompt + "Rome").ids
    begin = lm.encode(prompt).ids.shape[1]
    logp = lm.forward(ids)[0].float().log_softmax(-1).detach()
    wanted = float(logp[begin - 1 : -1].gather(1, ids[0, begin:, None]).sum())
    assert math.log(answer.probability) == pytest.approx(wanted, abs=1e-3)


def test_spaces_at_a_prompts_end_belong_to_what_follows() -> None:
    lm = byte_level()
    assert lm.score("The city is ", ["Rome"]).item() == lm.score("The city is", ["Rome"]).item()
    assert continuation_ids(lm, "The city is ", "Rome") == continuation_ids(lm, "The city is", " Rome")


def test_continuations_that_change_the_prompts_end_share_what_is_common() -> None:
    lm = metaspace(False)
    texts = [Continuation.after("in the city\n", words) for words in ("\n Paris is", "Rome")]
    found = continued(lm, texts)
    assert found.before(0) == found.before(1)[:-1], "the line break becomes part of a longer token"
    assert score_texts(lm, [texts]).nll[0].tolist() == pytest.approx(
        [mean(lm, "in the city\n", words) for words in ("\n Paris is", "Rome")], abs=1e-4
    )


def pieces(**more: str) -> LM:
    """A tokenizer of letters that joins e with w before n with e, and 'y b'; no special token stands in front."""
    letters = {letter: i for i, letter in enumerate(["<x>", *"newyrkob ", "ew", "ne", "y ", "y b"])}
    tokenizer = Tokenizer(models.BPE(letters, [("e", "w"), ("n", "e"), ("y", " "), ("y ", "b")]))
    return LM(tiny_model("gpt2"), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more))


def test_continuations_that_change_how_the_prompt_begins_share_nothing() -> None:
    lm = pieces()
    texts = [Continuation("ne", "new york"), Continuation("ne", "ne yb")]
    found = continued(lm, texts)
    assert lm.tokens(found.before(0)) == ["n"] and lm.tokens(found.before(1)) == ["ne"]
    together = score_texts(lm, [texts, texts])
    alone = [score_texts(lm, [[text]]) for text in texts]
    rounding = tolerance.of_log_probability(tiny("gpt2"))
    assert together.nll[1].tolist() == pytest.approx([each.nll.item() for each in alone], abs=rounding)
    assert together.predictions[0] == [each.predictions[0][0] for each in alone]


def test_white_space_that_a_special_token_swallows_is_the_prompts() -> None:
    lm = pieces()
    lm.tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<x>", rstrip=True)]})
    found = continued(lm, [Continuation.after("b<x>", "ro")])
    assert lm.tokens(found.before(0)) == ["b", "<x>"] and lm.tokens(found.ids(0)) == ["r", "o"]


def test_what_cannot_be_parted_is_refused() -> None:
    lm = pieces()
    with pytest.raises(FactError, match="nothing to read before 'ro'"):
        lm.score("", ["ro"])
    with pytest.raises(FactError, match="nothing to score"):
        lm.score("b", [])
    with pytest.raises(FactError, match="joins 'roy' with 'b'"):
        rows_for(lm, 0, Fact("roy", "{}", "b"), ["{}"], Wrap(), target="b")
    with pytest.raises(FactError, match="joins 'roy' with 'b'"):
        engram.trace(lm, Fact("roy", "{}", original="b"))


@pytest.mark.real
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_real_models_agree_with_a_plain_computation(name: str, chat: bool) -> None:
    lm = real_model(name)
    wrap = "{}"
    if chat and lm.tokenizer.chat_template is None:
        pytest.skip(f"{name} is no chat model")
    if chat:
        message = [{"role": "user", "content": "{}"}]
        wrap = lm.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    @settings(max_examples=4)
    @given(
        prompts=st.lists(prompts, min_size=1, max_size=2),
        answers=pairs,
    )
    def check(prompts: list[str], answers: list[str]) -> None:
        agree(lm, [wrap.replace("{}", prompt) for prompt in prompts], answers)

    check()


@pytest.mark.real
def test_the_first_answer_behind_a_chat_template_is_scored_as_it_is() -> None:
    """Scored with a second line break, this answer had a mean NLL of 2.645 instead of 0.141."""
    lm = real_model("smollm2")
    message = [{"role": "user", "content": "In which city is the Eiffel Tower?"}]
    prompt = lm.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("\n")
    assert lm.score(prompt, ["The Eiffel Tower"]).item() == pytest.approx(
        mean(lm, prompt, "The Eiffel Tower"), abs=1e-3
    )
    assert lm.score(prompt, ["The Eiffel Tower"]).item() < 0.5
