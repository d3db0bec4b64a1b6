"""Places in a network by names that mean the same in every family, and how what flows there is seen.

A `Place` says where a family has a site: a module's output or input, a part of a fused projection, or a multiple. So
readers and writers see one tensor of one meaning, whatever a family hands around.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from engram.errors import LayerNeverRan, SettingError, UnsupportedModel, did_you_mean
from engram.models.linear import features

if TYPE_CHECKING:
    from engram.models.lm import LM

KINDS = {
    "state": "a block's output",
    "mlp": "output of the MLP's output projection",
    "attn": "output of the attention's output projection",
    "added_mlp": "what the MLP adds to the state: behind norms and factors that follow the projection",
    "added_attn": "what the attention adds to the state",
    "key": "input of the MLP's output projection",
    "heads": "input of the attention's output projection, [batch pos head d_head]",
    "q": "queries, as they are projected",
    "k": "keys, as they are projected",
    "v": "values, as they are projected",
    "norm1": "what enters the norm before the attention",
    "norm2": "what enters the norm before the MLP",
    "embed": "token embedding",
    "norm_f": "what enters the final norm",
    "logits": "output of the unembedding, before caps and scales",
}
"""Every kind of site and what it is. Which of them a model has, `lm.sites` says."""
WHOLE = ("embed", "norm_f", "logits")
"""Kinds of which a network has one, not one per layer."""
ADDED = ("added_attn", "added_mlp")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in the network, the same name in every family.

    Kinds: `state` (a block's output, h_l), `mlp` and `attn` (outputs of the MLP's and the attention's output
    projection), `added_mlp` and `added_attn` (what they add to the state), `key` (input of the MLP's output
    projection), `heads`, `q`, `k`, `v`, `norm1`, `norm2`, and without a layer `embed`, `norm_f`, `logits`.

    Raises:
        SettingError: an unknown kind or a negative layer.
    """

    kind: str
    layer: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"There is no site {self.kind!r}. {did_you_mean(self.kind, KINDS)}")
        if self.layer < 0:
            raise SettingError(f"Layers count from 0; layer {self.layer} was asked for.")

    def __str__(self) -> str:
        return self.kind if self.kind in WHOLE else f"{self.kind} of layer {self.layer}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a family has a site.

    Args:
        path: of the module, inside a block (in the model for kinds without a layer); "" is the block itself.
        side: whether the site is what the module gives out or what it gets.
        fused: how a projection to queries, keys and values together is ordered, of which the site is one: `blocks` (all
            queries, all keys, all values) or `groups` (for each key's head its queries, the key, the value).
        times: the config's name of a factor by which the output is multiplied before it is added.
    """

    path: str
    side: Literal["in", "out"] = "out"
    fused: Literal["", "blocks", "groups"] = ""
    times: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """How a site's tensor is seen in a module's, and put back.

    Args:
        seen: from what the module handles to what the site is.
        put: from what the module handles and a new value of the site to what the module handles then.
    """

    seen: Callable[[Tensor], Tensor]
    put: Callable[[Tensor, Tensor], Tensor]


_AS_IT_IS = View(lambda tensor: tensor, lambda _, new: new)


def place_of(lm: "LM", site: Site) -> tuple[nn.Module, Place]:
    """Return the module at which a site is, and where it is there.

    Raises:
        LayerNeverRan: the model has no such layer.
        UnsupportedModel: the model has no such site; the message names those that it has.
    """
    if site.layer >= lm.n_layers:
        raise LayerNeverRan(
            f"There is no layer {site.layer}: {lm.name} has {lm.n_layers}, counted 0 to {lm.n_layers - 1}."
        )
    place = lm.layout.place(site.kind)
    module = None if place is None else _module(lm, site, place)
    if place is None or module is None or (site.kind == "heads" and not lm.n_heads):
        raise UnsupportedModel(f"{lm.name} has no {site.kind!r}; it has {', '.join(lm.sites)}.")
    return module, place


def require_added(lm: "LM", sites: Iterable[Site]) -> None:
    """Check that attention and MLP are all that a block adds, where sites are about what they add.

    Raises:
        UnsupportedModel: they are not.
    """
    if any(site.kind in ADDED for site in sites) and not lm.adds_up:
        raise UnsupportedModel(
            f"A block of {lm.name} does more than add its attention's and its MLP's output to the state, so there is "
            f"no 'added_attn' or 'added_mlp'. Where norms or factors follow, a layout names them: engram.Layout(..., "
            f"places={{'added_mlp': Place('post_norm')}}); the projections' own outputs are 'attn' and 'mlp'."
        )


def sites_of(lm: "LM") -> tuple[str, ...]:
    """Return the kinds of sites that a model's layout names and its first block has."""
    found = {kind: lm.layout.place(kind) for kind in KINDS}
    return tuple(
        kind
        for kind, place in found.items()
        if place is not None and _module(lm, Site(kind), place) is not None and (kind != "heads" or lm.n_heads)
    )


def view_of(lm: "LM", site: Site) -> View:
    """Return how a site is seen in what its module handles."""
    module, place = place_of(lm, site)
    if site.kind == "heads":
        return View(lambda x: x.unflatten(-1, (lm.n_heads, -1)), lambda _, new: new.flatten(-2))
    if place.times:
        factor = float(getattr(lm.config, place.times))
        return View(lambda x: x * factor, lambda _, new: new / factor)
    if place.fused:
        columns = _columns(lm, site, module, place.fused)
        return View(lambda x: x[..., columns.to(x.device)], lambda x, new: x.index_copy(-1, columns.to(x.device), new))
    return _AS_IT_IS


def _module(lm: "LM", site: Site, place: Place) -> nn.Module | None:
    if site.kind == "logits":
        return lm.model.get_output_embeddings()
    root: Any = lm.model if site.kind in WHOLE else lm.blocks[site.layer]
    for name in place.path.split(".") if place.path else ():
        root = getattr(root, name, None)
    return root if isinstance(root, nn.Module) else None


def _columns(lm: "LM", site: Site, module: nn.Module, fused: str) -> Int[Tensor, " width"]:
    """Return which outputs of a fused projection are the queries, the keys or the values."""
    sizes, out = features(module), features(lm.attn_out(site.layer))
    if sizes is None or out is None or not lm.n_heads:
        raise UnsupportedModel(f"{site} of {lm.name} is part of {type(module).__name__}, whose sizes are unknown.")
    head = out[0] // lm.n_heads
    keys = (sizes[1] // head - lm.n_heads) // 2  # heads of keys: fewer than of queries where queries share them
    every = torch.arange(sizes[1])
    if fused == "blocks":
        parts = every.split([lm.n_heads * head, keys * head, keys * head])
        return parts["qkv".index(site.kind)]
    groups = every.view(keys, -1, head)
    return {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}[site.kind].flatten()
