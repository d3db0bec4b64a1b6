"""What one number of a trace stands for: which layers are restored at which token."""

from dataclasses import dataclass
from typing import Literal

TraceSite = Literal["attn", "mlp", "state"]
WindowStyle = Literal["code", "paper"]
WINDOW = 10
"""The window of the paper and of the published code, whatever the model."""
PUBLISHED_DEPTH = 24
"""Layers of the smallest model that was traced with it (GPT-2 Medium; GPT-J has 28, GPT-NeoX 44, GPT-2 XL 48)."""


@dataclass(frozen=True, slots=True, order=True)
class Restoration:
    """One restoration: the clean values of `site` at one token in the layers [low, high).

    Args:
        site: `state`, `mlp` or `attn`.
        position: the token.
        low: first restored layer.
        high: the layer after the last restored one.
    """

    site: TraceSite
    position: int
    low: int
    high: int


def usual_window(n_layers: int) -> int:
    """Return a window that tells layers apart: the paper's ten from 24 layers on, a quarter of fewer (rounded up)."""
    return WINDOW if n_layers >= PUBLISHED_DEPTH else -(-n_layers // 4)


def window_bounds(layer: int, *, window: int, n_layers: int, style: WindowStyle = "code") -> tuple[int, int]:
    """Return the layers [low, high) that a window around `layer` covers, clipped to the model.

    Args:
        layer: the window's place in the grid.
        window: number of layers.
        n_layers: number of layers of the model.
        style: `code` as the published code has it, l - w//2 ... l + ceil(w/2) - 1; `paper` as its text has it, one
            layer higher where `window` is even: [l-4, l+5] for ten layers.
    """
    below = window // 2 if style == "code" else (window - 1) // 2
    low = layer - below
    return max(0, low), min(n_layers, low + window)


def restoration_at(
    site: TraceSite, position: int, layer: int, *, window: int, n_layers: int, style: WindowStyle
) -> Restoration:
    """Return what one cell of a grid restores: a state is one layer, outputs are a window."""
    if site == "state":
        return Restoration(site, position, layer, layer + 1)
    low, high = window_bounds(layer, window=window, n_layers=n_layers, style=style)
    return Restoration(site, position, low, high)
