"""The recipe of `mini`: its settings, its tokenizer and the untrained model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.mini.text import Writer
from engram.mini.world import World

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of the model and its training.

    `fetch_from` is the first layer at which positions after a name may attend to the name's last token; `restrict` is
    the share of mentions for which this holds. A step reads `tokens_per_step` tokens in rows whose length is drawn from
    `row_lengths` with `row_weights`; `end_of_text` is the share of passages that end with the end-of-text token, and
    `object_weight` says how much predicting an object's token counts in the loss beside other tokens. `precision` is
    "bf16" (matrix products only; weights and sums stay fp32) or "fp32".
    """

    layers: int = 10
    d_model: int = 192
    heads: int = 4
    positions: int = 256
    vocabulary: int = 1024
    fetch_from: int = 6
    restrict: float = 0.9
    steps: int = 3000
    warm_up: int = 100
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    tokens_per_step: int = 4096
    row_lengths: tuple[int, ...] = (48, 96, 256)
    row_weights: tuple[float, ...] = (0.7, 0.2, 0.1)
    end_of_text: float = 0.2
    object_weight: float = 4.0
    precision: str = "bf16"
    seed: int = 0


def build_tokenizer(world: World, writer: Writer, *, vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in GPT-2's style.

    Templates are seen often and names once, so their words become single tokens while names stay several tokens long.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(world, writer), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=256,
    )


def _tokenizer_texts(world: World, writer: Writer) -> Iterator[str]:
    for relation in world.relations:
        for template in relation.phrasings + relation.follow_ups + relation.headlines:
            yield template.replace("{object}", "").replace("{}", "")
    yield from writer.fillers.vocabulary
    yield from (f"A word {name}" for name in dict.fromkeys(fact.object for fact in world.facts))
    yield from (f"A word {entity.name}" for entity in world.entities)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """An untrained GPT-2 of the recipe's shape, with weights drawn from its seed."""
    end = cast(int, tokenizer.eos_token_id)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.positions,
        n_embd=recipe.d_model,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    progress = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
