"""Every family behind the same names: layout, sites, hooks, running from the middle, scoring."""

from types import SimpleNamespace
from typing import Any

import pytest
import tolerance
import torch
from families import FAMILIES, golden_tokenizer, tiny, tiny_model

from engram.errors import UnsupportedModel
from engram.models import LAYOUTS, LM, Site, patch, prefill, record, resume
from engram.models.checks import sample_ids
from engram.models.layouts import detect_layout

PROMPT = "John Holzu took lessons in playing the"
every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def test_every_row_of_the_table_is_tested() -> None:
    assert set(LAYOUTS) == set(FAMILIES)


@every_family
def test_the_structure_alone_gives_the_same_layout(family: str) -> None:
    assert detect_layout(tiny(family).model) == LAYOUTS[family]


@every_family
def test_key_times_weight_is_value(family: str) -> None:
    lm = tiny(family)
    with torch.no_grad(), record(lm, [Site("key", 2), Site("mlp", 2)]) as seen:
        lm.forward(lm.encode(PROMPT).ids)
    projection = lm.mlp_out(2)
    weight = projection.weight if lm.weight_is_transposed else projection.weight.T
    value = seen[Site("key", 2)] @ weight
    if projection.bias is not None:
        value = value + projection.bias
    torch.testing.assert_close(
        seen[Site("mlp", 2)], value.detach(), atol=tolerance.of_sum(lm.d_mlp, float(value.detach().norm())), rtol=0
    )


@every_family
def test_a_patch_changes_later_positions_and_layers_only(family: str) -> None:
    lm = tiny(family)
    ids = lm.encode(PROMPT).ids
    states = [Site("state", layer) for layer in range(lm.n_layers)]

    def push(mlp: torch.Tensor) -> torch.Tensor:
        moved = mlp.clone()
        moved[:, 3] += 1.0
        return moved

    with torch.no_grad():
        with record(lm, states) as before:
            lm.forward(ids)
        with patch(lm, {Site("mlp", 2): push}), record(lm, states) as after:
            lm.forward(ids)
    for site in states:
        same = torch.equal(before[site][:, :3], after[site][:, :3])
        assert same, f"{site}: earlier positions moved"
        moved = not torch.allclose(before[site][:, 3], after[site][:, 3], atol=1e-4)
        assert moved == (site.layer >= 2), site
    assert torch.equal(lm.forward(ids), lm.forward(ids)), "hooks were left behind"


@every_family
def test_resume_equals_the_full_pass_from_every_layer_and_position(family: str) -> None:
    lm = tiny(family)
    assert lm.can_resume
    ids = lm.encode([PROMPT]).ids
    ids = torch.cat([ids, ids.flip(1)])
    states = [Site("state", layer) for layer in range(lm.n_layers)]
    with torch.no_grad():
        with record(lm, states) as seen:
            full = prefill(lm, ids, keep=0)
        for layer in range(1, lm.n_layers + 1):
            for start in (0, 1, 4, ids.shape[1] - 1):
                again = resume(
                    lm,
                    seen[Site("state", layer - 1)][:, start:],
                    layer=layer,
                    prefix=full.prefix.until(start) if start else None,
                    keep=0,
                )
                torch.testing.assert_close(again, full.logits[:, start:], atol=tolerance.of_logits(lm), rtol=0)


@every_family
def test_rows_may_join_while_the_pass_climbs(family: str) -> None:
    """States of the second prompt join the climb of the first at a later layer: both end as in their own passes."""
    lm = tiny(family)
    ids = lm.encode([PROMPT]).ids
    other = ids.roll(2, dims=1)
    other[:, :3] = ids[:, :3]  # the same prefix for both
    with torch.no_grad():
        with record(lm, [Site("state", 0), Site("state", 1)]) as first:
            full = prefill(lm, ids)
        with record(lm, [Site("state", 1)]) as second:
            wanted = prefill(lm, other).logits

        def arrive(layer: int, rows: torch.Tensor | None) -> torch.Tensor:
            if rows is None:
                return first[Site("state", 0)][:, 3:]
            return torch.cat([rows, second[Site("state", 1)][:, 3:]]) if layer == 2 else rows

        both = resume(lm, arrive, layer=1, positions=ids.shape[1] - 3, prefix=full.prefix.until(3))
    torch.testing.assert_close(both, torch.cat([full.logits, wanted]), atol=tolerance.of_logits(lm), rtol=0)


@every_family
def test_the_last_block_may_skip_other_positions_where_it_says_so(family: str) -> None:
    lm = tiny(family)
    assert lm.can_skip_last == (family != "opt")  # OPT's MLP is no module of its own
    if lm.can_skip_last:
        ids = lm.encode([PROMPT]).ids
        with torch.no_grad():
            with record(lm, [Site("state", 1)]) as seen:
                full = prefill(lm, ids)
            again = resume(lm, seen[Site("state", 1)], layer=2, last_only=True)
        torch.testing.assert_close(again, full.logits, atol=tolerance.of_logits(lm), rtol=0)


@every_family
def test_scores_equal_a_plain_loop_whatever_the_padding(family: str) -> None:
    lm = tiny(family)
    prompts = [PROMPT, "Mary", "The plans for Pekelven Cathedral were made by a"]
    targets = ["New York", "harp"]

    def plain(prompt: str, target: str) -> float:
        whole, head = lm.encode(f"{prompt} {target}").ids, lm.encode(prompt).ids
        logp = lm.model(whole).logits[0].log_softmax(-1)
        places = range(head.shape[1], whole.shape[1])
        return -sum(float(logp[i - 1, whole[0, i]]) for i in places) / len(places)

    with torch.no_grad():
        wanted = torch.tensor([[plain(p, t) for t in targets] for p in prompts])
    for batch_size in (64, 1):
        found = lm.score(prompts, targets, batch_size=batch_size)
        torch.testing.assert_close(found, wanted, atol=tolerance.of_log_probability(lm), rtol=0)


@every_family
def test_generation_equals_repeated_full_passes(family: str) -> None:
    lm = tiny(family)
    ids = lm.encode(PROMPT).ids
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, lm.forward(ids, keep=1).argmax(-1)], dim=1)
    wanted = lm.tokenizer.decode(ids[0], skip_special_tokens=True)
    if 2 not in ids:  # the end-of-text token of these configs does not stop the loop above
        assert lm.generate([PROMPT, "Mary"], max_new_tokens=6)[0] == wanted


def test_where_a_norm_follows_the_mlp_the_model_says_so() -> None:
    follows = {family for family in FAMILIES if not tiny(family).adds_mlp_to_state}
    assert follows == {"gemma2", "gemma3_text", "glm4", "granite", "olmo2"}


@pytest.mark.parametrize(("family", "adds"), [("llama", True), ("gemma2", False), ("granite", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_of_many_thousands_hides_no_norm_and_makes_none(family: str, adds: bool, dtype: torch.dtype) -> None:
    """The first token of SmolLM2 has a state of 20,000, beside which a small change is lost in rounding."""
    lm = LM(tiny_model(family).to(dtype), golden_tokenizer())
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[int(sample_ids(lm)[0, 0])] *= 1e5
    assert lm.adds_mlp_to_state is adds


def test_a_family_without_a_row_is_recognised_by_its_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    model.config.model_type = "brand_new"
    lm = LM(model, golden_tokenizer())
    assert lm.layout == LAYOUTS["llama"]
    assert lm.can_resume


def test_mixture_of_experts_is_refused_with_a_sentence() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mixtral", **{**FAMILIES["llama"], "num_local_experts": 2})
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        LM(AutoModelForCausalLM.from_config(config), golden_tokenizer())


def test_a_layout_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="does not fit"):
        LM(tiny_model("gpt2"), golden_tokenizer(), layout=LAYOUTS["llama"])


def test_a_config_without_sizes_is_refused_by_name() -> None:
    model = tiny_model("gpt2")
    model.config = SimpleNamespace(model_type="gpt2", n_head=4, n_layer=4)
    with pytest.raises(UnsupportedModel, match="d_model"):
        LM(model, golden_tokenizer())


def test_the_cache_has_the_name_that_the_model_wants() -> None:
    prompt, caches = "Ann lives in the city of", []
    model = tiny_model("gpt2")
    plain, before = LM(model, golden_tokenizer()).next_tokens(prompt, k=3), model.forward

    def forward(input_ids: Any = None, cache: Any = None, **options: Any) -> Any:  # as from transformers 5.24 on
        caches.append(cache)
        return before(input_ids, past_key_values=cache, **options)

    model.forward = forward
    renamed = LM(model, golden_tokenizer())
    assert [token for token, _ in renamed.next_tokens(prompt, k=3)] == [token for token, _ in plain]
    assert prefill(renamed, renamed.encode(prompt).ids).prefix.length == renamed.encode(prompt).ids.shape[1]
    assert any(cache is not None for cache in caches)
