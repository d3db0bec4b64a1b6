"""Where things are inside a decoder: one row per family, structural detection for the others.

A `Layout` names four places: the list of blocks, and inside a block the output projections of attention and MLP, and
the token embedding. Output projections are used rather than whole attention or MLP modules because their inputs and
outputs mean the same in every family (BLOOM's MLP module adds the residual itself, OPT has no MLP module, modules
return tuples in some versions): the input of `mlp_out` is the **key**, its output the **value** (ROME paper, §3).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from engram.errors import UnsupportedModel
from engram.models.linear import features
from engram.models.sites import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Paths of the modules that Engram reads and changes.

    Args:
        blocks: path of the list of transformer blocks in the model.
        attn_out: path, inside a block, of the attention's output projection.
        mlp_out: path, inside a block, of the MLP's output projection (the weight that ROME edits).
        embed: path of the token embedding in the model.
        places: where the further sites are, by their kind (`engram.models.sites`).
    """

    blocks: str
    attn_out: str
    mlp_out: str
    embed: str
    places: Mapping[str, Place] = field(default_factory=dict[str, Place], compare=False)

    def place(self, kind: str) -> Place | None:
        """Return where a kind of site is; None where the layout does not say."""
        if kind in self.places:
            return self.places[kind]
        match kind:
            case "state":
                return Place("")
            case "embed":
                return Place(self.embed)
            case "mlp" | "added_mlp":
                return Place(self.mlp_out)
            case "key":
                return Place(self.mlp_out, "in")
            case "attn" | "added_attn" if self.attn_out:
                return Place(self.attn_out)
            case "heads" if self.attn_out:
                return Place(self.attn_out, "in")
            case "logits":
                return Place("")
            case _:
                return None


def _places(
    attention: str,
    qkv: Sequence[str],
    norms: Sequence[str],
    *,
    fused: Literal["", "blocks", "groups"] = "",
    final: str = "model.norm",
) -> dict[str, Place]:
    """Name the projections to queries, keys and values, and the norms before attention and MLP and at the end."""
    paths = [f"{attention}.{name}" for name in qkv] * (3 if fused else 1)
    projections = {kind: Place(path, fused=fused) for kind, path in zip("qkv", paths, strict=True)}
    return {
        **projections,
        **{kind: Place(name, "in") for kind, name in zip(("norm1", "norm2"), norms, strict=False) if name},
        "norm_f": Place(final, "in"),
    }


def _also(layout: Layout, **places: Place) -> Layout:
    return replace(layout, places={**layout.places, **places})


_SPLIT = ("q_proj", "k_proj", "v_proj")
_GPT2 = Layout(
    blocks="transformer.h",
    attn_out="attn.c_proj",
    mlp_out="mlp.c_proj",
    embed="transformer.wte",
    places=_places("attn", ["c_attn"], ["ln_1", "ln_2"], fused="blocks", final="transformer.ln_f"),
)
_GPTJ = Layout(
    blocks="transformer.h",
    attn_out="attn.out_proj",
    mlp_out="mlp.fc_out",
    embed="transformer.wte",
    places=_places("attn", _SPLIT, ["ln_1", "ln_1"], final="transformer.ln_f"),
)
_GPT_NEO = Layout(
    blocks="transformer.h",
    attn_out="attn.attention.out_proj",
    mlp_out="mlp.c_proj",
    embed="transformer.wte",
    places=_places("attn.attention", _SPLIT, ["ln_1", "ln_2"], final="transformer.ln_f"),
)
_PRE = ("input_layernorm", "post_attention_layernorm")
_NEOX = Layout(
    blocks="gpt_neox.layers",
    attn_out="attention.dense",
    mlp_out="mlp.dense_4h_to_h",
    embed="gpt_neox.embed_in",
    places=_places("attention", ["query_key_value"], _PRE, fused="groups", final="gpt_neox.final_layer_norm"),
)
_OPT = Layout(
    blocks="model.decoder.layers",
    attn_out="self_attn.out_proj",
    mlp_out="fc2",
    embed="model.decoder.embed_tokens",
    places=_places(
        "self_attn", _SPLIT, ["self_attn_layer_norm", "final_layer_norm"], final="model.decoder.final_layer_norm"
    ),
)
_BLOOM = Layout(
    blocks="transformer.h",
    attn_out="self_attention.dense",
    mlp_out="mlp.dense_4h_to_h",
    embed="transformer.word_embeddings",
    places=_places("self_attention", ["query_key_value"], _PRE, fused="groups", final="transformer.ln_f"),
)
_LLAMA = Layout(
    blocks="model.layers",
    attn_out="self_attn.o_proj",
    mlp_out="mlp.down_proj",
    embed="model.embed_tokens",
    places=_places("self_attn", _SPLIT, _PRE),
)
_PARALLEL = replace(_LLAMA, places=_places("self_attn", _SPLIT, ["input_layernorm"] * 2))
_SANDWICH = replace(
    _LLAMA,
    places={
        **_places("self_attn", _SPLIT, ["input_layernorm", "pre_feedforward_layernorm"]),
        "added_attn": Place("post_attention_layernorm"),
        "added_mlp": Place("post_feedforward_layernorm"),
    },
)
_BEHIND = replace(  # norms stand behind attention and MLP only
    _LLAMA,
    places={
        **_places("self_attn", _SPLIT, []),
        "added_attn": Place("post_attention_layernorm"),
        "added_mlp": Place("post_feedforward_layernorm"),
    },
)
_PHI = Layout(
    blocks="model.layers",
    attn_out="self_attn.dense",
    mlp_out="mlp.fc2",
    embed="model.embed_tokens",
    places=_places("self_attn", _SPLIT, ["input_layernorm"] * 2, final="model.final_layernorm"),
)
_PHI3 = replace(_LLAMA, places=_places("self_attn", ["qkv_proj"], _PRE, fused="blocks"))
_STARCODER2 = replace(_LLAMA, mlp_out="mlp.c_proj")

LAYOUTS: dict[str, Layout] = {
    "bloom": _BLOOM,
    "cohere": _PARALLEL,
    "falcon": _BLOOM,
    "gemma": _LLAMA,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "glm4": _also(_LLAMA, added_attn=Place("post_self_attn_layernorm"), added_mlp=Place("post_mlp_layernorm")),
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _NEOX,
    "gptj": _GPTJ,
    "granite": _also(
        _LLAMA,
        added_attn=Place("self_attn.o_proj", times="residual_multiplier"),
        added_mlp=Place("mlp.down_proj", times="residual_multiplier"),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo2": _BEHIND,
    "opt": _OPT,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _STARCODER2,
}
"""Layouts by `config.model_type`."""

_EXPERTS = re.compile(r"experts?$|moe|sparse", re.IGNORECASE)
_EXPERT_SETTINGS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def find_layout(model: nn.Module) -> Layout:
    """Return the layout of a model: its family's row, else what its structure shows.

    Raises:
        UnsupportedModel: encoder-decoder, mixture of experts, or a structure that was not recognised.
    """
    config: Any = model.config
    family = str(config.model_type)
    _refuse(model, config, family)
    row = LAYOUTS.get(family)
    return row if row is not None else detect_layout(model)


def detect_layout(model: nn.Module) -> Layout:
    """Work out a layout from the structure alone, for a family that has no row.

    The blocks are the longest `ModuleList` of equal modules; in a block, the attention's output projection is the last
    projection to d_model inside the attention, the MLP's the last one outside of it.

    Raises:
        UnsupportedModel: no such structure; the message says what was looked for.
    """
    lists = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len({type(b) for b in m}) == 1
    ]
    embeds = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    if not lists or not embeds:
        raise UnsupportedModel(_unrecognised(model, "no list of equal blocks and no token embedding"))
    blocks, modules = max(lists, key=lambda item: len(item[1]))
    embed, embedding = max(embeds, key=lambda item: item[1].num_embeddings)
    outs = [name for name, m in modules[0].named_modules() if _out_features(m) == embedding.embedding_dim]
    attn = [name for name in outs if "attn" in name or "attention" in name]
    mlp = [name for name in outs if name not in attn]
    if not attn or not mlp:
        raise UnsupportedModel(_unrecognised(model, f"{blocks}.0 has no two projections to d_model"))
    return Layout(blocks=blocks, attn_out=attn[-1], mlp_out=mlp[-1], embed=embed)


def _out_features(module: nn.Module) -> int | None:
    sizes = features(module)
    if sizes is not None:
        return sizes[1]
    weight: Any = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _refuse(model: nn.Module, config: Any, family: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{family!r} is an encoder-decoder model; Engram reads and edits decoder-only language models."
        )
    experts = any((getattr(config, name, None) or 0) > 1 for name in _EXPERT_SETTINGS)
    if experts or any(_EXPERTS.search(type(m).__name__) for m in model.modules()):
        raise UnsupportedModel(
            f"{family!r} is a mixture of experts: a token's MLP is chosen by a router, so there is no single output "
            f"projection to trace or edit. Engram supports dense decoders only."
        )


def _unrecognised(model: nn.Module, found: str) -> str:
    config: Any = model.config
    return (
        f"The structure of {type(model).__name__} ({config.model_type!r}) was not recognised: {found}. "
        f"Pass a layout: engram.LM(model, tokenizer, layout=engram.Layout(blocks=..., attn_out=..., mlp_out=..., "
        f"embed=...)). Known families: {', '.join(sorted(LAYOUTS))}."
    )
