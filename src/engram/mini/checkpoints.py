"""Training checkpoints in one safetensors file: weights, the optimizers' tensors, the step, the recipe; no pickle."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from engram.errors import DataError
from engram.mini.optimizers import Optimizers
from engram.mini.recipe import Recipe
from engram.storage import write_file


def save_checkpoint(path: Path, optimizers: Optimizers, recipe: Recipe, *, step: int) -> None:
    """Write the state after `step` steps; the file at `path` is replaced in one piece or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, weight in optimizers.model.named_parameters():
        tensors[f"weight|{name}"] = weight.detach()
        for optimizer in optimizers.members:
            if weight in optimizer.state:
                tensors |= {f"{key}|{name}": value for key, value in optimizer.state[weight].items()}
    write_file(path, save(tensors, metadata={"step": str(step), "recipe": _described(recipe)}))


def load_checkpoint(path: Path, optimizers: Optimizers, recipe: Recipe) -> int:
    """Put the checkpoint's state into the model and the optimizers, and return its step.

    Raises `DataError` when it was made with another recipe.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["recipe"] != _described(recipe):
            raise DataError(
                f"{path} was made with another recipe:\n  {metadata['recipe']}\nnot\n  {_described(recipe)}\n"
                "Delete the file or choose another folder to train from scratch."
            )
        weights = dict(optimizers.model.named_parameters())
        homes = {
            name: optimizer
            for optimizer in optimizers.members
            for group in optimizer.param_groups
            for name, weight in weights.items()
            if any(weight is member for member in group["params"])
        }
        with torch.no_grad():
            for tensor_name in file.keys():
                key, name = tensor_name.split("|")
                value = file.get_tensor(tensor_name)
                if key == "weight":
                    weights[name].copy_(value)
                else:
                    homes[name].state[weights[name]][key] = value
    return int(metadata["step"])


def _described(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)
