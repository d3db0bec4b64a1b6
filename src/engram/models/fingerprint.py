"""The identity of a model: the same weights give the same sixteen digits wherever and however they were loaded."""

import hashlib
import json

import torch
from torch import Tensor, nn

from engram.models.linear import codes, is_quantised

SAMPLES = 4096
"""Elements hashed per parameter, evenly spread; any change of a whole matrix (every edit is one) shows in them."""


def fingerprint_of(model: nn.Module) -> str:
    """Hash the names, shapes and a spread sample of all parameters, rounded to bf16.

    Rounding makes fp32 and bf16 copies equal. Offloaded weights (accelerate) are read from where they lie; of quantised
    modules the codes are hashed.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_weights(model).items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(_sample(tensor).to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for module_name, module in model.named_modules():
        stored = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            if stored is not None and parameter.device.type == "meta":
                weights[full] = stored[name]
        if is_quantised(module):  # some keep their codes in buffers, or nowhere that PyTorch lists
            weights |= {f"{module_name}.{name}": value for name, value in codes(module).items()}
    for name in _tied(model):  # offloading gives a weight that is used twice two names
        weights.pop(name, None)
    return weights


def _tied(model: nn.Module) -> list[str]:
    config = getattr(model, "config", None)
    return (
        list(getattr(model, "_tied_weights_keys", None) or []) if getattr(config, "tie_word_embeddings", False) else []
    )


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    step = max(1, -(-flat.numel() // SAMPLES))
    return flat[::step].float()
