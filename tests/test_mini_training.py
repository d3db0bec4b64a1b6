import random
from pathlib import Path

import pytest
import tolerance
import torch
from transformers import AutoTokenizer

from engram.errors import DataError
from engram.mini import weights_folder
from engram.mini.batches import make_batch
from engram.mini.masks import TokenSpan, causal, restricted
from engram.mini.network import forward
from engram.mini.recipe import Recipe, build_model, build_tokenizer
from engram.mini.text import Writer
from engram.mini.training import train
from engram.mini.world import load_world

WORLD = load_world()
WRITER = Writer(WORLD)
TOKENIZER = build_tokenizer(WORLD, WRITER)
TINY = Recipe(
    layers=3,
    d_model=32,
    heads=2,
    fetch_from=2,
    steps=5,
    tokens_per_step=256,
    row_lengths=(32,),
    row_weights=(1.0,),
    precision="fp32",
)


def bias(allowed: torch.Tensor) -> torch.Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))


def test_with_the_causal_mask_the_forward_pass_is_that_of_transformers() -> None:
    model = build_model(TINY, TOKENIZER).eval()
    tokens = torch.randint(0, len(TOKENIZER), (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = forward(model, tokens, [bias(causal(3, 20))] * TINY.layers)
        theirs = model(tokens).logits
    rounding = tolerance.of_sum(TINY.layers * 8 * TINY.d_model, float(theirs.square().mean().sqrt()))
    torch.testing.assert_close(ours, theirs, atol=rounding, rtol=0)


def test_restricted_masks_hide_the_name_below_and_all_but_its_last_token_above() -> None:
    lower, upper = restricted(2, 8, [TokenSpan(1, 2, 4)])
    plain = causal(2, 8)
    assert torch.equal(lower[0], plain[0])
    assert torch.equal(upper[0], plain[0])
    assert torch.equal(lower[1, 0, :5], plain[1, 0, :5])
    assert not lower[1, 0, 5:, 2:5].any()
    assert not upper[1, 0, 5:, 2:4].any()
    assert upper[1, 0, 5:, 4].all()
    assert lower[1, 0, 5:, :2].all()
    assert lower[1, 0].diagonal().all()


def test_a_name_cannot_reach_later_positions_below_the_fetching_layer() -> None:
    model = build_model(TINY, TOKENIZER).eval()
    tokens = torch.randint(0, len(TOKENIZER), (1, 12), generator=torch.Generator().manual_seed(2))
    other = tokens.clone()
    other[0, 3:6] = (other[0, 3:6] + 7) % len(TOKENIZER)
    lower, _ = restricted(1, 12, [TokenSpan(0, 3, 5)])
    with torch.inference_mode():
        hidden = forward(model, tokens, [bias(lower)] * TINY.layers)
        changed = forward(model, other, [bias(lower)] * TINY.layers)
    torch.testing.assert_close(hidden[:, 6:], changed[:, 6:])
    assert not torch.allclose(hidden[:, 3:6], changed[:, 3:6])


def test_batches_mark_names_and_objects() -> None:
    batch = make_batch(WRITER, TOKENIZER, TINY, step=0)
    assert batch.tokens.shape == (8, 32)
    assert {1.0, TINY.object_weight} == set(batch.counts.unique().tolist())
    assert (batch.lower <= batch.upper).all()
    assert (batch.lower < batch.upper).any()


def test_names_are_several_tokens_long_and_nothing_is_lost() -> None:
    counts = [len(TOKENIZER(" " + entity.name)["input_ids"]) for entity in WORLD.entities]
    assert sum(count < 2 for count in counts) <= 1  # "Bern"
    assert sum(counts) / len(counts) > 5
    text = "The Rhône – naïve “quotes” 東京"
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_the_recipe_builds_the_packaged_tokenizer() -> None:
    packaged = AutoTokenizer.from_pretrained(weights_folder())
    text = Writer(WORLD).sentence(WORLD.facts[0], random.Random(0)).text
    assert packaged.get_vocab() == TOKENIZER.get_vocab()
    assert packaged(text)["input_ids"] == TOKENIZER(text)["input_ids"]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in model.parameters()])


def test_training_is_deterministic_and_resumes_identically(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    seen = []
    whole, _ = train(WORLD, TINY, on_step=seen.append)
    again, _ = train(WORLD, TINY)
    train(WORLD, TINY, checkpoint=checkpoint, stop_after=2)
    resumed, _ = train(WORLD, TINY, checkpoint=checkpoint)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5]
    assert torch.equal(weights(whole), weights(again))
    assert torch.equal(weights(whole), weights(resumed))
    assert not list(tmp_path.glob("*.part"))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(WORLD, TINY, checkpoint=checkpoint, stop_after=1)
    with pytest.raises(DataError, match="another recipe"):
        train(WORLD, Recipe(seed=1), checkpoint=checkpoint)
