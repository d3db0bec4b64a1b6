"""Trains `mini`, deterministic given a seed up to floating point, resumable at every checkpoint.

Notable: see `masks.py` for what makes recall happen where it happens in large models.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.errors import NumericalError
from engram.mini.batches import Batch, make_batch
from engram.mini.checkpoints import load_checkpoint, save_checkpoint
from engram.mini.network import forward
from engram.mini.optimizers import Optimizers
from engram.mini.recipe import Recipe, build_model, build_tokenizer
from engram.mini.text import Writer
from engram.mini.world import World


def batch_loss(model: GPT2LMHeadModel, batch: Batch, recipe: Recipe) -> Float[Tensor, ""]:
    """Weighted mean cross entropy in nats of every next token in the batch."""
    biases = [batch.lower if layer < recipe.fetch_from else batch.upper for layer in range(recipe.layers)]
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = forward(model, batch.tokens, biases)
    losses = functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
    )
    counts = batch.counts[:, 1:].flatten()
    return (losses * counts).sum() / counts.sum()


@dataclass(frozen=True)
class Progress:
    """What training reports after a step."""

    step: int
    steps: int
    loss: float


def train(
    world: World,
    recipe: Recipe,
    *,
    writer: Writer | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 250,
    stop_after: int | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Train `mini` from scratch, or go on from `checkpoint` if that file exists; `stop_after` ends early at that step.

    Raises `DataError` when the checkpoint was made with another recipe, `NumericalError` when the loss is not finite.
    """
    writer = Writer(world) if writer is None else writer
    tokenizer = build_tokenizer(world, writer, vocabulary=recipe.vocabulary)
    model = build_model(recipe, tokenizer)
    optimizers = Optimizers(model, recipe)
    start = load_checkpoint(checkpoint, optimizers, recipe) if checkpoint and checkpoint.is_file() else 0
    end = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    for step in range(start, end):
        loss = batch_loss(model, make_batch(writer, tokenizer, recipe, step=step), recipe)
        loss.backward()
        optimizers.step(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericalError(f"The training loss is {value} at step {step}; lower the learning rate.")
        if on_step:
            on_step(Progress(step + 1, recipe.steps, value))
        if checkpoint and ((step + 1) % checkpoint_every == 0 or step + 1 == end):
            save_checkpoint(checkpoint, optimizers, recipe, step=step + 1)
    return model.eval(), tokenizer
