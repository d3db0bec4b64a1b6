"""What is read off the last position's logits."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

MetricName = Literal["log_probability", "logit_difference", "probability"]

_ROWS = 64  # rows turned into float32 at a time: bounds the memory for large vocabularies


@dataclass(frozen=True, slots=True)
class Metric:
    """A number per row of logits.

    Args:
        name: `probability` of the answer, `log_probability` (nats), or `logit_difference` (answer minus `against`).
        answer: token id of the answer.
        against: token id of the second answer, for `logit_difference`.
    """

    name: MetricName
    answer: int
    against: int | None = None

    def __call__(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """Return the metric of each row, in float32 on the CPU."""
        return torch.cat([self._of(rows.float()) for rows in logits.split(_ROWS)]).cpu()

    def _of(self, logits: Tensor) -> Tensor:
        mine = logits[:, self.answer]
        if self.name == "logit_difference":
            return mine - logits[:, self.against]
        logp = mine - logits.logsumexp(-1)
        return logp if self.name == "log_probability" else logp.exp()
