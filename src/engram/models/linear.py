"""Linear modules, plain or quantised: their sizes, and what can be done with their weights.

Quantised modules (bitsandbytes, GPTQ, AWQ, torchao, torch's own) keep codes where others keep numbers: packed, of
another shape and type, in a tensor subclass, or not under `weight` at all. What holds for all of them is what they
compute: a linear function of `in_features` numbers.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROWS = 1024


def is_conv1d(module: nn.Module) -> bool:
    """Say whether a projection stores its weight as [in, out] (GPT-2's Conv1D) rather than [out, in] (Linear)."""
    return type(module).__name__ == "Conv1D"


def features(module: nn.Module) -> tuple[int, int] | None:
    """Return how many numbers enter a linear module and how many leave it; None for other modules."""
    if is_conv1d(module):
        rows, columns = module.get_parameter("weight").shape
        return int(rows), int(columns)
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        return sizes[0], sizes[1]
    return None


def is_quantised(module: nn.Module) -> bool:
    """Say whether a module is linear but its weight is no matrix of numbers that can be added to."""
    sizes = features(module)
    if sizes is None or is_conv1d(module):
        return False
    weight: Any = getattr(module, "weight", None)
    plain = (
        isinstance(weight, Tensor)
        and type(weight) in (Tensor, nn.Parameter)
        and weight.dtype in _NUMBERS
        and weight.shape == (sizes[1], sizes[0])
    )
    return not plain


def parameter_shape(module: nn.Module, leaf: str) -> tuple[int, ...]:
    """Return the shape of a linear module's weight or bias as the numbers that it stands for."""
    sizes = features(module)
    if sizes is None or not is_quantised(module):
        return tuple(getattr(module, leaf).shape)
    return (sizes[1], sizes[0]) if leaf == "weight" else (sizes[1],)


@torch.no_grad()
def weight_norm(module: nn.Module, device: torch.device, dtype: torch.dtype) -> float:
    """Return the Frobenius norm of a quantised module's matrix, found by asking it column by column.

    Args:
        module: a linear module.
        device: where its inputs go.
        dtype: their type.
    """
    sizes = features(module)
    if sizes is None:
        return math.nan
    nothing = module(torch.zeros(1, sizes[0], device=device, dtype=dtype)).float()  # the bias
    total = 0.0
    for begin in range(0, sizes[0], _ROWS):
        ones = torch.eye(sizes[0], dtype=dtype, device=device)[begin : begin + _ROWS]
        total += float((module(ones).float() - nothing).double().square().sum())
    return math.sqrt(total)


def codes(module: nn.Module) -> dict[str, Tensor]:
    """Return everything that a quantised module keeps, as plain tensors by name."""
    found: dict[str, Tensor] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, tuple | list):
            for index, item in enumerate(value):
                add(f"{name}.{index}", item)
        elif isinstance(value, Tensor):
            packed = value.is_quantized or type(value) not in (Tensor, nn.Parameter)
            found[name] = value.dequantize() if packed and hasattr(value, "dequantize") else value.detach()

    for name, value in module.state_dict().items():
        add(name, value)
    return found


def passes_gradients(module: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether gradients reach what entered a quantised module; torch's own int8 modules stop them, silently."""
    sizes = features(module)
    with torch.enable_grad():
        probe = torch.ones(1, sizes[0] if sizes else 1, device=device, dtype=dtype, requires_grad=True)
        try:
            found: Any = torch.autograd.grad(module(probe).float().sum(), probe, allow_unused=True)
        except RuntimeError:
            return False
    return found[0] is not None
