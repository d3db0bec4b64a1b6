"""What a freshly wrapped model is asked once, with passes over a few tokens: is the layout right, what is possible?"""

import logging
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import EngramError, UnsupportedModel
from engram.models.encoding import left_padded
from engram.models.hooks import listening, on_block_input, patch, record
from engram.models.resume import Prefix, prefill, resume
from engram.models.runs import decoder
from engram.models.sites import ADDED, Site

if TYPE_CHECKING:
    from engram.models.lm import LM

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative; a wrong wiring is off by more than 1e-1
_ROUNDINGS = 8  # of a state that is added to and read twice
_MISFITS = (EngramError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


def sample_ids(lm: "LM", length: int = 4) -> Tensor:
    """Return a few different token ids, the same for every model: [1 pos]."""
    step = max(1, lm.vocab_size // (length + 1))
    return torch.arange(1, length + 1).mul(step).remainder(lm.vocab_size).unsqueeze(0)


def validate(lm: "LM") -> Float[Tensor, "1 pos vocab"]:
    """Check a layout by one forward pass over four tokens; return their logits.

    Raises:
        UnsupportedModel: a site is missing, never runs, or has the wrong width.
    """
    middle = lm.n_layers // 2
    kinds = [kind for kind in ("attn", "key", "mlp", "state") if lm.layout.place(kind) is not None]
    sites = [Site("embed"), *(Site(kind, middle) for kind in kinds)]
    try:
        with torch.no_grad(), record(lm, sites) as seen:
            logits = lm.forward(sample_ids(lm))
    except (EngramError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"{_layout(lm)} does not fit {type(lm.model).__name__}: {error}") from error
    widths = {"attn": lm.d_model, "key": lm.d_mlp, "mlp": lm.d_model, "state": lm.d_model}
    for site, tensor in seen.items():
        if site.kind in widths and tensor.shape != (1, 4, widths[site.kind]):
            raise UnsupportedModel(
                f"{_layout(lm)} does not fit {type(lm.model).__name__}: the {site} has shape {tuple(tensor.shape)}, "
                f"expected (1, 4, {widths[site.kind]})."
            )
    return logits


@torch.no_grad()
def can_continue(lm: "LM", whole: Float[Tensor, "1 pos vocab"]) -> bool:
    """Say whether what a model keeps of a prompt gives the logits of one whole pass, with padding on the left, too.

    Args:
        lm: the model.
        whole: logits of a pass over the four tokens of `sample_ids`.
    """
    tokens = sample_ids(lm)[0].tolist()
    ids, mask = left_padded([tokens[:2], tokens[:1]])
    rest = torch.tensor([tokens[2:], tokens[1:3]])
    try:
        reading = decoder.read(lm, ids, mask, 1)
        Prefix.of(lm, reading.memory)
        again = decoder.go_on(lm, reading, rest, torch.ones_like(rest), 0, again=False).logits
    except _MISFITS as error:
        logger.info("%s cannot continue from a cache (%s); it is run whole", type(lm.model).__name__, error)
        return False
    same = _close(again, torch.cat([whole[:, 2:4], whole[:, 1:3]]), half=lm.dtype != torch.float32)
    if not same:
        logger.info("%s does not continue from a cache as it would run whole; it is run whole", type(lm.model).__name__)
    return same


@torch.no_grad()
def heeds_mask(lm: "LM", whole: Float[Tensor, "1 pos vocab"]) -> bool:
    """Say whether padding on the left plays no part; arguments as for `can_continue`."""
    tokens = sample_ids(lm)[0].tolist()
    ids, mask = left_padded([tokens, tokens[:3]])
    try:
        again = lm.forward(ids, mask=mask, keep=2)
    except _MISFITS:
        return False
    return _close(again, torch.cat([whole[:, 2:4], whole[:, 1:3]]), half=lm.dtype != torch.float32)


def adds_mlp_to_state(lm: "LM") -> bool:
    """Say whether a change of the MLP's output appears unchanged in the block's output.

    True for most families; not where a norm or a factor follows (Gemma 2, OLMo 2, GLM 4, Granite). The change that is
    tried is half as large as the state: beside one of 20,000, as at the first token of many models, a small one rounds.
    """
    ids, layer = sample_ids(lm), lm.n_layers // 2
    state = Site("state", layer)
    with torch.no_grad():
        with record(lm, [state], stop=True) as before:
            lm.forward(ids)
        size = before[state].abs().amax(-1, keepdim=True).clamp_min(0.1) / 2
        nudge = size * torch.arange(1, lm.d_model + 1, dtype=lm.dtype, device=size.device).cos()
        with (
            patch(lm, {Site("mlp", layer): lambda mlp: mlp + nudge.to(mlp)}),
            record(lm, [state]) as after,
        ):
            lm.forward(ids)
    off = (after[state] - before[state] - nudge.to(after[state])).abs()
    return bool((off <= max(TOLERANCE, _ROUNDINGS * torch.finfo(lm.dtype).eps) * size.to(off)).all())


@torch.no_grad()
def adds_up(lm: "LM") -> bool:
    """Say whether the sites `added_attn` and `added_mlp` are all that a block adds to the state."""
    ids, layer = sample_ids(lm), lm.n_layers // 2
    entering: list[Tensor] = []

    def note(hidden: Tensor) -> Tensor:
        entering.append(hidden)
        return hidden

    after, added = Site("state", layer), [Site(kind, layer) for kind in ADDED if kind in lm.sites]
    with on_block_input(lm, layer, note), listening(lm, [after, *added]) as seen:
        lm.forward(ids)
    found = sum((seen[site] for site in added), entering[0])
    return _close(found, seen[after], half=lm.dtype != torch.float32)


def can_resume(lm: "LM") -> bool:
    """Say whether `resume` gives the full pass's logits on this model; a property of its forward."""
    return _same_logits(lm, last_only=False)


def can_skip_last(lm: "LM") -> bool:
    """Say whether the last block may leave out what other positions than the last do not need."""
    return _same_logits(lm, last_only=True)


def _same_logits(lm: "LM", *, last_only: bool) -> bool:
    ids, layer = sample_ids(lm).repeat(2, 1), max(1, lm.n_layers // 2)
    ids[1] = ids[1].flip(0)
    state = Site("state", layer - 1)
    try:
        with torch.no_grad():
            with record(lm, [state]) as seen:
                full = prefill(lm, ids)
            rest = seen[state][:, 2:]
            prefix = full.prefix.until(2)
            again = resume(lm, rest, layer=layer, prefix=prefix, last_only=last_only)
    except _MISFITS as error:
        logger.info("%s cannot be run from the middle (%s); the plain path is used", type(lm.model).__name__, error)
        return False
    return _close(again, full.logits, half=lm.dtype != torch.float32)


def _close(a: Tensor, b: Tensor, *, half: bool) -> bool:
    tolerance = 100 * TOLERANCE if half else TOLERANCE
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-6))


def _layout(lm: "LM") -> str:
    layout: Any = lm.layout
    return f"The layout (blocks {layout.blocks!r}, attention {layout.attn_out!r}, MLP {layout.mlp_out!r})"
