"""How much of a trace fits into the memory budget.

Estimates, on the safe side: what a pass holds at its widest point per row, and what the shared passes keep per sample.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engram.errors import SettingError
from engram.locate.tracing.staircase import Limits

if TYPE_CHECKING:
    from engram.models import LM

GIB = 1 << 30
CPU_BUDGET = GIB
"""Default budget on the CPU, bytes."""

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": GIB, "kb": 10**3, "mb": 10**6, "gb": 10**9}


@dataclass(frozen=True, slots=True)
class Speed:
    """Rough figures of a device, for choosing between fewer passes and less arithmetic.

    Args:
        seconds_per_block: fixed cost of running one block.
        flops: sustained floating-point operations per second.
    """

    seconds_per_block: float
    flops: float


_CPU = Speed(4e-4, 5e10)
_GPU = {torch.float32: Speed(3e-4, 3e13)}
_GPU_HALF = Speed(3e-4, 3e14)


def parse_budget(budget: int | float | str | None, device: torch.device) -> int:
    """Return a memory budget in bytes; by default 1 GiB on the CPU, half of what is free on a GPU.

    Raises:
        SettingError: not a size such as `2e9` or `"2GiB"`.
    """
    if budget is None:
        return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_BUDGET
    number: float | None = None
    if isinstance(budget, str):
        text = budget.strip().lower()
        digits = text.rstrip("kmgib ")
        unit = text[len(digits) :].strip()
        try:
            number = float(digits) * _UNITS[unit]
        except (KeyError, ValueError):
            number = None
    else:
        number = float(budget)
    if number is None or not 0 < number < float("inf"):
        raise SettingError(f"memory_budget={budget!r} is no size. Give bytes or a text such as '2GiB'.")
    return int(number)


def bytes_per_row(lm: "LM", positions: int, length: int) -> int:
    """Return what one row of a pass holds at its widest: hidden states, one block's insides, keys, values, logits.

    Inside a block, per position: ten vectors of the model's width (the state, its norm, queries, keys, values, the
    mixture, both outputs and the two sums) and five of the MLP's (gate, up, their product, the activation and its
    copy); keys and values of all tokens twice, once as cached and once joined; attention scores three times (raw,
    masked, normalised). At the end four of the model's width, and the last position's logits three times.
    """
    size = torch.empty((), dtype=lm.dtype).element_size()
    inside = (
        positions * (10 * lm.d_model + 5 * lm.d_mlp) + 4 * length * lm.d_model + 3 * lm.n_heads * positions * length
    )
    unembedding = 4 * positions * lm.d_model + 3 * lm.vocab_size
    return size * max(inside, unembedding)


def bytes_per_sample(lm: "LM", length: int, *, kinds: int) -> int:
    """Return what the shared passes keep per sample: keys, values, states and `kinds` more values of every layer."""
    size = torch.empty((), dtype=lm.dtype).element_size()
    return size * (3 + kinds) * length * lm.n_layers * lm.d_model


def samples_at_once(lm: "LM", length: int, *, samples: int, kinds: int, budget: int) -> int:
    """Return how many samples may run together so that shared values take at most half of the budget."""
    passes = bytes_per_row(lm, length, length) * max(1, kinds)
    return min(samples, max(1, budget // (2 * bytes_per_sample(lm, length, kinds=kinds) + passes)))


def rows_at_once(lm: "LM", positions: int, length: int, *, budget: int) -> int:
    """Return how many rows a pass may hold."""
    return max(1, budget // bytes_per_row(lm, positions, length))


def limits_of(lm: "LM", length: int, *, samples: int, kinds: int, budget: int) -> Limits:
    """Return what one climb may hold and what it costs on this model's device."""
    left = budget - samples * bytes_per_sample(lm, length, kinds=kinds)
    speed = _CPU if lm.device.type == "cpu" else _GPU.get(lm.dtype, _GPU_HALF)
    groups = [0]
    for positions in range(1, length + 1):
        groups.append(max(1, rows_at_once(lm, positions, length, budget=left) // samples))
    flops = 2 * samples * (4 * lm.d_model * lm.d_model + 2 * lm.d_model * lm.d_mlp)
    return Limits(groups=groups, seconds_per_block=speed.seconds_per_block, seconds_per_position=flops / speed.flops)
