"""Where an edit stops being fine: a threshold for everything that is looked at.

Those of the prompts were measured by `benchmarks/guard.py` on edits of two real models and `mini`, those of fluency on
`mini` (docs/check-and-guard.md has the tables).
"""

from dataclasses import dataclass

from engram.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a verdict is "ok".

    Args:
        paraphrase: least share of paraphrases that follow the edit (0 to 1).
        context: least share of texts in front of the prompt behind which it follows.
        neighbor: least share of neighbors that stay.
        spill: by how many nats per token the new answer may gain on the old one among neighbors, on average.
        other_fact: least share of the subject's other facts that stay.
        unrelated_fact: least share of unrelated facts that stay.
        relative_norm: Frobenius norm of the change over that of the weight, the largest of all changed parameters.
        perplexity_ratio: perplexity of held-out text after the edit over before.
        repetition: by how much the share of repeated three-token sequences in generated text may rise (0 to 1).
        require_target: whether every target must be the model's greedy answer to its prompt.

    Raises:
        SettingError: a number that is negative or NaN, or a share above 1.
    """

    paraphrase: float | int = 0.5
    context: float | int = 0.5
    neighbor: float | int = 0.8
    spill: float | int = 5.0
    other_fact: float | int = 0.5
    unrelated_fact: float | int = 0.5
    relative_norm: float | int = 4.0
    perplexity_ratio: float | int = 1.1
    repetition: float | int = 0.2
    require_target: bool = True

    def __post_init__(self) -> None:
        for name in ("spill", "relative_norm", "perplexity_ratio", "repetition"):
            if not getattr(self, name) >= 0:
                raise SettingError(f"{name}={getattr(self, name)}; a threshold is a number of 0 or more.")
        for name in ("paraphrase", "context", "neighbor", "other_fact", "unrelated_fact"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name}={getattr(self, name)}; a share is a number from 0 to 1.")
