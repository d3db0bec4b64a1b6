"""How far two right computations of one number may lie apart: bounds that follow from rounding, none of them guessed.

Why. A kernel may add in any order, in any number of lanes, with or without fused multiply-adds; another processor,
thread count or batch takes another one, and both are right. A tolerance that was read off one machine says what that
machine does, and fails on the next. The bounds here say what rounding can do.

The model. Each operation rounds by up to half an eps of its result. A sum of n products adds n such errors of either
sign, so that their spread grows with sqrt(n) and not with n (N. Higham, Accuracy and Stability of Numerical Algorithms,
§2.8 and §4): relative to the size of such a sum, eps/2 * sqrt(n). What is built on other sums carries their errors
along, independent ones, so that their n add up: a pass through L blocks is a chain of L times (queries, scores,
outputs, up, down). Four times that spread is what tests allow, for the largest of the many numbers that they compare.

What stays visible. A wrong layer, window, token or text moves these numbers by far more: `test_tolerance.py` shows it.
"""

import math
from functools import cache
from typing import Any

import torch

DEVIATIONS = 4
"""How many times the expected spread a difference may be."""

TEXT = "John Holzu took lessons in playing the harp"


def of_sum(terms: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The bound of a sum of so many products whose size is `scale`."""
    return DEVIATIONS * torch.finfo(dtype).eps / 2 * math.sqrt(terms) * scale


def of_pass(lm: Any, layers: int | None = None) -> float:
    """The relative bound of states, keys and logits behind so many blocks (all of them when not given)."""
    blocks = lm.n_layers if layers is None else layers
    return of_sum(blocks * (3 * lm.d_model + lm.d_mlp) + lm.d_model)


@cache
def _spread(lm: Any) -> float:
    """The size of a model's logits."""
    with torch.no_grad():
        return float(lm.forward(lm.encode(TEXT).ids).square().mean().sqrt())


def of_logits(lm: Any) -> float:
    """The absolute bound of a logit."""
    return of_pass(lm) * max(1.0, _spread(lm))


def of_log_probability(lm: Any) -> float:
    """The absolute bound of a log probability, a logit less the logarithm of a sum over logits: twice a logit's."""
    return 2 * of_logits(lm)


def of_probability(lm: Any) -> float:
    """The absolute bound of a probability: dp = p (dx - Σ p dx), at most half of a logit's."""
    return of_logits(lm) / 2


def of_losses(lm: Any, losses: Any) -> float:
    """The absolute bound of the losses of a descent: each step adds a pass's error to what is gained."""
    values = torch.as_tensor(losses)
    return of_log_probability(lm) + of_pass(lm) * values.numel() * float(values.max() - values.min())


def of_descent(lm: Any) -> float:
    """The relative bound of what Adam finds (a value, an update).

    Adam moves a coordinate by the sign of its gradient, as it were. Where the gradient is smaller than its own error δ
    (relative to the gradients' spread; 0.8 δ of all coordinates), the sign is chance, and the coordinate may differ by
    twice the step: sqrt(4 * 0.8 δ) of the norm.
    """
    return 2 * math.sqrt(of_pass(lm))
