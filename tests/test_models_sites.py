"""Sites mean the same in every family: what is added to the state, heads, queries, keys, values, norms, logits."""

import pytest
import tolerance
import torch
from families import FAMILIES, golden_tokenizer, tiny, tiny_model

from engram.errors import UnsupportedModel
from engram.models import LM, Layout, Site, patch, record
from engram.models.sites import ADDED, KINDS, WHOLE, Place
from uncached import MAMBA, uncached

PROMPT = "John Holzu took lessons in playing the"
LAYER = 2
every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def seen_in(lm: LM, *kinds: str, layer: int = LAYER) -> list[torch.Tensor]:
    sites = [Site(kind, 0 if kind in WHOLE else layer) for kind in kinds]
    with torch.no_grad(), record(lm, sites) as seen:
        lm.forward(lm.encode(PROMPT).ids)
    return [seen[site] for site in sites]


@every_family
def test_a_state_is_the_one_below_and_what_attention_and_mlp_add(family: str) -> None:
    lm = tiny(family)
    for layer in range(1, lm.n_layers):
        below = seen_in(lm, "state", layer=layer - 1)[0]
        state, attn, mlp = seen_in(lm, "state", *ADDED, layer=layer)
        bound = tolerance.of_sum(3, float(torch.stack([below, attn, mlp]).abs().max()))
        torch.testing.assert_close(below + attn + mlp, state, atol=bound, rtol=0)


@every_family
def test_a_change_of_what_is_added_appears_in_the_state_unchanged(family: str) -> None:
    lm, nudge = tiny(family), torch.linspace(-1, 1, 32)
    ids, state = lm.encode(PROMPT).ids, Site("state", LAYER)
    with torch.no_grad():
        (before,) = seen_in(lm, "state")
        with patch(lm, {Site("added_mlp", LAYER): lambda x: x + nudge}), record(lm, [state]) as after:
            lm.forward(ids)
    torch.testing.assert_close(
        after[state] - before, nudge.expand_as(before), atol=tolerance.of_sum(9, float(before.abs().max())), rtol=0
    )


@every_family
def test_heads_are_the_input_of_the_output_projection(family: str) -> None:
    lm = tiny(family)
    heads, attn = seen_in(lm, "heads", "attn")
    assert heads.shape == (1, attn.shape[1], lm.n_heads, heads.shape[-1])
    with torch.no_grad():
        made = lm.attn_out(LAYER)(heads.flatten(-2))
    torch.testing.assert_close(made, attn, atol=tolerance.of_sum(lm.d_model, float(attn.norm())), rtol=0)


@every_family
def test_the_first_token_mixes_only_its_own_values(family: str) -> None:
    lm = tiny(family)
    heads, values = seen_in(lm, "heads", "v")
    keys = values.unflatten(-1, (-1, heads.shape[-1]))[:, 0]
    wanted = keys.repeat_interleave(lm.n_heads // keys.shape[1], dim=1)
    torch.testing.assert_close(heads[:, 0], wanted, atol=1e-6, rtol=1e-5)


@every_family
@pytest.mark.parametrize("kind", ["q", "k"])
def test_without_queries_or_keys_attention_is_a_mean(family: str, kind: str) -> None:
    lm = tiny(family)
    sites = [Site("heads", LAYER), Site("v", LAYER)]
    with torch.no_grad(), patch(lm, {Site(kind, LAYER): torch.zeros_like}), record(lm, sites) as seen:
        lm.forward(lm.encode(PROMPT).ids)
    heads, values = (seen[site] for site in sites)
    values = values.unflatten(-1, (-1, heads.shape[-1]))
    values = values.repeat_interleave(lm.n_heads // values.shape[2], dim=2)
    first = heads[:, 1] - values[:, 0]
    second = values[:, 1] - values[:, 0]
    share = (first * second).sum(-1) / (second * second).sum(-1)  # of the second token, in each head
    torch.testing.assert_close(first, share[..., None] * second, atol=1e-5, rtol=1e-4)
    if family != "bloom":  # its bias by distance stays
        torch.testing.assert_close(share, torch.full_like(share, 0.5), atol=1e-5, rtol=0)


@every_family
def test_a_part_of_a_fused_projection_is_changed_alone(family: str) -> None:
    lm = tiny(family)
    kinds = ("q", "k", "v")
    before = seen_in(lm, *kinds)
    for changed in kinds:
        sites = [Site(kind, LAYER) for kind in kinds]
        with torch.no_grad(), patch(lm, {Site(changed, LAYER): lambda x: x + 1}), record(lm, sites) as seen:
            lm.forward(lm.encode(PROMPT).ids)
        for kind, site, was in zip(kinds, sites, before, strict=True):
            torch.testing.assert_close(seen[site], was + (kind == changed), atol=1e-6, rtol=0)


@every_family
def test_norms_read_the_state_on_its_way(family: str) -> None:
    lm = tiny(family)
    below, state = seen_in(lm, "state", layer=LAYER - 1)[0], seen_in(lm, "state", layer=lm.n_layers - 1)[0]
    torch.testing.assert_close(seen_in(lm, "norm_f")[0], state, atol=0, rtol=0)
    if family == "olmo2":
        assert not {"norm1", "norm2"} & set(lm.sites)
        return
    torch.testing.assert_close(seen_in(lm, "norm1")[0], below, atol=0, rtol=0)
    if "norm2" in lm.sites:
        (norm2,), (attn,) = seen_in(lm, "norm2"), seen_in(lm, "added_attn")
        parallel = family in ("cohere", "gptj", "gpt_neox", "phi")
        wanted = below if parallel else below + attn
        torch.testing.assert_close(norm2, wanted, atol=tolerance.of_sum(2, float(wanted.abs().max())), rtol=0)


@every_family
def test_logits_are_what_the_unembedding_says(family: str) -> None:
    lm = tiny(family)
    with torch.no_grad(), record(lm, [Site("logits")]) as seen:
        said = lm.forward(lm.encode(PROMPT).ids)
    assert torch.equal(seen[Site("logits")].argmax(-1), said.argmax(-1))


def test_the_other_ways_of_putting_a_block_together_add_up_or_are_refused() -> None:
    for family, changes in (
        ("gpt_neox", {"use_parallel_residual": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("falcon", {"parallel_attn": False, "multi_query": False}),
        ("granite", {"residual_multiplier": 0.22}),
    ):
        lm = LM(tiny_model(family, **changes), golden_tokenizer())
        assert lm.adds_up, (family, changes)
        heads, values = seen_in(lm, "heads", "v")
        keys = values.unflatten(-1, (-1, heads.shape[-1]))[:, 0]
        wanted = keys.repeat_interleave(lm.n_heads // keys.shape[1], dim=1)
        torch.testing.assert_close(heads[:, 0], wanted, atol=1e-6, rtol=1e-5)
    for family, changes in (
        ("opt", {"do_layer_norm_before": False}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ):
        lm = LM(tiny_model(family, **changes), golden_tokenizer())
        with pytest.raises(UnsupportedModel, match="more than add"), record(lm, [Site("added_mlp", LAYER)]):
            pass


def test_a_site_that_a_model_lacks_is_answered_with_those_that_it_has() -> None:
    lm = uncached("mamba")
    with pytest.raises(UnsupportedModel, match=r"mamba has no 'heads'; it has state, mlp, attn, .*logits\."):
        lm.module(Site("heads", 1))
    bare = Layout(blocks=MAMBA.blocks, attn_out="", mlp_out=MAMBA.mlp_out, embed=MAMBA.embed)
    lm = LM(lm.model, golden_tokenizer(), name="mamba", layout=bare)
    assert lm.sites == ("state", "mlp", "added_mlp", "key", "embed", "logits")
    assert lm.adds_up
    with (
        pytest.raises(UnsupportedModel, match="mamba has no 'attn'; it has state"),
        record(lm, [Site("attn", 1)]),
    ):
        pass


def test_a_layout_may_name_places_of_its_own() -> None:
    plain = uncached("plain")
    places = {
        **{kind: Place("attn.qkv", fused="blocks") for kind in ("q", "k", "v")},
        "norm2": Place("mlp.up", "in"),
    }
    given = Layout(blocks="blocks", attn_out="attn.out", mlp_out="mlp.down", embed="wte", places=places)
    plain.model.config.num_attention_heads = 1
    lm = LM(plain.model, golden_tokenizer(), layout=given)
    heads, values = seen_in(lm, "heads", "v")
    torch.testing.assert_close(heads[:, 0, 0], values[:, 0])
    assert {"q", "k", "v", "norm2", "added_mlp"} <= set(lm.sites)


def test_every_kind_has_words_and_a_place_in_some_family() -> None:
    assert {kind for family in FAMILIES for kind in tiny(family).sites} == set(KINDS)
