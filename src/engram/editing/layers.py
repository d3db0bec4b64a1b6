"""Where to edit: the published layers for known models, a documented rule for others."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.models import LM

Known = tuple[str, int]
"""`config.model_type` and number of layers: what tells GPT-2 XL from GPT-2 Medium."""

MEDIUM, LARGE, XL = ("gpt2", 24), ("gpt2", 36), ("gpt2", 48)
GPTJ, NEOX = ("gptj", 28), ("gpt_neox", 44)

ROME_LAYERS: Mapping[Known, int] = {MEDIUM: 8, LARGE: 12, XL: 17, GPTJ: 5, NEOX: 15}
"""PROTOCOL §3."""


def known(lm: "LM") -> Known:
    """Return a model's row in the published tables."""
    return str(lm.config.model_type), lm.n_layers


def chosen_layer(
    lm: "LM", layer: int | None, published: Mapping[Known, int], *, otherwise: int, rule: str
) -> tuple[int, tuple[str, ...]]:
    """Return the layer to edit, and a sentence about how it was found when the user did not say.

    Args:
        lm: the model; a built-in one may name its layer in its config (`engram_edit_layer`).
        layer: what the user said.
        published: layers by model.
        otherwise: the layer for other models.
        rule: why that one, for the sentence.

    Raises:
        SettingError: out of range.
    """
    if layer is not None:
        if not 0 <= layer < lm.n_layers:
            raise SettingError(
                f"layer={layer}, but {lm.name} has {lm.n_layers} layers, counted 0 to {lm.n_layers - 1}."
            )
        return layer, ()
    if known(lm) in published:
        found = published[known(lm)]
        return found, (f"Layer {found}: the published choice for this model.",)
    found = getattr(lm.config, "engram_edit_layer", None)
    if isinstance(found, int) and 0 <= found < lm.n_layers:
        return found, (f"Layer {found}: named in the model's config.",)
    return otherwise, (f"Layer {otherwise}: {rule}. Trace a few facts to find a better one, and give layer=...",)


def rome_layer(lm: "LM", layer: int | None) -> tuple[int, tuple[str, ...]]:
    """Return ROME's layer: published, else a third of the depth, where GPT-2's published layers lie.

    Raises:
        SettingError: out of range.
    """
    return chosen_layer(lm, layer, ROME_LAYERS, otherwise=lm.n_layers // 3, rule="a third of the depth, as in GPT-2")


def rome_clamp(lm: "LM", usual: float) -> float:
    """Return the bound of ‖δ‖ over ‖v₀‖: 3 for GPT-2 Medium, as published; what a config names; or `usual`."""
    if known(lm) == MEDIUM:
        return 3.0
    found = getattr(lm.config, "engram_edit_clamp", None)
    return float(found) if isinstance(found, int | float) and found > 0 else usual
