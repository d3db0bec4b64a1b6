"""Kinds of changes: each keeps the contract, and what is known of a pass is the same whoever runs it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tolerance
import torch
from families import golden_tokenizer, tiny, tiny_model

from contracts import PROMPTS, check_change, close, score, under
from edits import random_edit
from engram.editing import Dense, Edit, applied_rows
from engram.editing.changes import KINDS, Change, Codebook, Preamble, SiteChange, preamble
from engram.editing.changes.change import array
from engram.errors import EditError, EditMismatch
from engram.models import LM
from engram.models.encoding import left_padded
from engram.models.generation import Generation, generate_batch
from engram.models.passes import Pass
from engram.models.resume import prefill, resume
from engram.models.scoring import score_batch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Switch(SiteChange):
    """A third kind: where the prompt's mean and last input point along `key`, `value` is given out from there on."""

    kind: ClassVar[str] = "switch"

    key: torch.Tensor
    value: torch.Tensor

    def __call__(self, inputs: torch.Tensor, outputs: torch.Tensor, now: Pass) -> torch.Tensor:
        on = now.chosen(lambda: (now.at_prompt_end(inputs) + now.over_prompt(inputs)) @ self.key > 0)
        here = on[:, None] & (now.index >= now.prompt_end[:, None])
        return torch.where(here[..., None], self.value.to(outputs.dtype), outputs)

    def parts(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"key": self.key, "value": self.value}, {}

    @classmethod
    def of(cls, where: str, arrays: Any, plain: Any) -> "Switch":
        return cls(module=where, key=array(arrays, "key", dims=1), value=array(arrays, "value", dims=1))

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.key), len(self.value)


@pytest.fixture(autouse=True)
def third_kind() -> Iterator[None]:
    KINDS["switch"] = Switch
    yield
    del KINDS["switch"]


def own(family: str = "gpt2") -> LM:
    return LM(tiny_model(family), golden_tokenizer(), name=f"own-{family}")


def switch(lm: LM, layer: int = 2, *, seed: int = 0, place: str = "mlp_out") -> Switch:
    draw = torch.Generator().manual_seed(seed)
    module = lm.mlp_out_name(layer).removesuffix(".weight") if place == "mlp_out" else f"{lm.layout.blocks}.{layer}"
    enter = lm.d_mlp if place == "mlp_out" else lm.d_model
    return Switch(
        module=module, key=torch.randn(enter, generator=draw), value=3 * torch.randn(lm.d_model, generator=draw)
    )


def choosing(lm: LM, layer: int = 2, *, place: str = "mlp_out") -> Switch:
    """A switch that is on for some of the prompts, and off for others."""
    plain = score(lm, PROMPTS)
    for seed in range(20):
        change = switch(lm, layer, seed=seed, place=place)
        on = (under(lm, Edit.of(lm, [change])) - plain).abs().amax(1) > 1e-3
        if on.any() and not on.all():
            return change
    raise AssertionError("no seed chooses")


def near(lm: LM, prompt: str = PROMPTS[0]) -> Codebook:
    """A codebook with an entry at one of the prompts, and another that none is near."""
    module, seen = lm.mlp_out_name(2).removesuffix(".weight"), []
    handle = lm.model.get_submodule(module).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        lm.forward(lm.encode(prompt).ids)
    handle.remove()
    key = seen[0].reshape(-1, lm.d_mlp)[-1]
    values = 3 * torch.randn(2, lm.d_model, generator=torch.Generator().manual_seed(3))
    return Codebook(
        module=module, keys=torch.stack([key + 50, key]), values=values, radii=torch.full((2,), 1e-2), labels=("a", "b")
    )


def example(kind: str, lm: LM) -> Change:
    match kind:
        case "low-rank":
            return random_edit(lm).changes[0]
        case "dense":
            return Edit.of(lm, {n: Dense(u.dense()) for n, u in random_edit(lm).updates.items()}).changes[0]
        case "codebook":
            return near(lm)
        case "preamble":
            return preamble(lm, "Cy plays chess today.")
        case "switch":
            return choosing(lm)
        case _:
            raise AssertionError(f"give an example of the kind {kind!r} here")


@pytest.mark.parametrize("kind", [*KINDS, "switch"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_kind_keeps_the_contract(family: str, kind: str, tmp_path: Path) -> None:
    lm = own(family)
    check_change(lm, example(kind, lm), tmp_path)


@pytest.mark.parametrize("kind", [*KINDS, "switch"])
def test_whole_texts_in_one_pass_say_what_prompts_that_go_on_say(kind: str) -> None:
    lm = own("gpt2")
    edit = Edit.of(lm, [example(kind, lm)])
    rows = [lm.encode(f"{prompt} chess today").ids[0].tolist() for prompt in PROMPTS]
    counts = torch.tensor([len(row) - lm.encode(p).ids.shape[1] for row, p in zip(rows, PROMPTS, strict=True)])
    assert int(counts.min()) > 1
    ids, mask = left_padded(rows)
    with edit.applied(lm), lm.passes.ending(ids.shape[1] - counts - 1):
        logp = lm.forward(ids, mask=mask).float().log_softmax(-1)[:, :-1]
    nll = -logp.gather(-1, ids[:, 1:, None])[..., 0]
    whole = torch.stack([row[-count:].mean() for row, count in zip(nll, counts.tolist(), strict=True)])
    with edit.applied(lm):
        assert close(lm, whole, score_batch(lm, PROMPTS, [["chess today"]] * len(PROMPTS))[:, 0])


def test_the_kind_that_the_documentation_writes_keeps_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "new-change.md"
    (file,) = re.findall(r"^```python\n(\"\"\"Push.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {"__name__": "push"}
    exec(compile(file, page.name, "exec"), names)  # noqa: S102 (our own page)
    kind, lm = names["Push"], own("gpt2")
    monkeypatch.setitem(KINDS, "push", kind)
    check_change(
        lm, kind(module=f"{lm.layout.blocks}.1.mlp.c_proj", vector=torch.linspace(-1, 1, lm.d_model)), tmp_path
    )


@pytest.mark.parametrize("family", ["opt", "bloom", "gemma2"])
@pytest.mark.parametrize("place", ["mlp_out", "block"])
def test_a_gate_acts_in_every_kind_of_block(family: str, place: str) -> None:
    lm = own(family)
    edit = Edit.of(lm, [choosing(lm, place=place)])
    together, alone = under(lm, edit), torch.cat([under(lm, edit, [prompt]) for prompt in PROMPTS])
    assert close(lm, together, alone) and not close(lm, together, score(lm, PROMPTS))
    texts = []
    with edit.applied(lm):
        texts = lm.generate(PROMPTS, max_new_tokens=5)
        assert texts == [lm.generate(prompt, max_new_tokens=5) for prompt in PROMPTS]


def test_a_gate_decides_on_the_prompt_and_keeps_to_it() -> None:
    lm = tiny("gpt2")
    change = switch(lm)
    module, seen = lm.model.get_submodule(change.module), []
    handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    try:
        for sign in (1, -1):
            seen.clear()
            gate = Switch(module=change.module, key=sign * change.key, value=change.value)
            handle.remove()
            with Edit.of(lm, [gate]).applied(lm):
                handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
                generate_batch(lm, PROMPTS[:1], Generation(max_new_tokens=5, beyond_end=True))
            on = [bool((out[:, -1] == gate.value).all()) for out in seen]
            assert len(set(on)) == 1 and len(on) == 5
            assert not (seen[0][:, :-1] == gate.value).all(-1).any()
    finally:
        handle.remove()


def test_a_gate_keeps_to_it_where_the_model_is_run_whole() -> None:
    lm, whole = own(), own()
    whole.can_continue = False
    edit = Edit.of(lm, [choosing(lm), preamble(lm, "Bo plays chess.")])
    how = Generation(max_new_tokens=5, beyond_end=True)
    with edit.applied(lm), edit.applied(whole):
        assert generate_batch(lm, PROMPTS, how) == generate_batch(whole, PROMPTS, how)
        assert close(lm, score(lm, PROMPTS), score(whole, PROMPTS))


def test_beams_are_as_they_would_be_without_a_cache() -> None:
    lm = tiny("gpt2")
    encoded = lm.encode(PROMPTS, padding_side="left")
    with Edit.of(lm, [choosing(lm)]).applied(lm):
        found = [
            lm.model.generate(
                input_ids=encoded.ids, attention_mask=encoded.mask, max_new_tokens=5, num_beams=3, do_sample=False,
                use_cache=cached, pad_token_id=0, eos_token_id=None,
            )
            for cached in (True, False)
        ]  # fmt: skip
    assert torch.equal(*found)


def test_a_pipeline_is_under_the_edit_too() -> None:
    from transformers import pipeline

    lm = tiny("gpt2")
    write = pipeline("text-generation", model=lm.model, tokenizer=lm.tokenizer)
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": True, "eos_token_id": None}
    with Edit.of(lm, [choosing(lm), preamble(lm, "Bo plays chess.")]).applied(lm):
        assert write(PROMPTS[0], **options)[0]["generated_text"] == lm.generate(PROMPTS[0], max_new_tokens=5)


def test_gates_of_rows_and_kinds_mix_with_weights() -> None:
    lm = tiny("llama")
    edits = [
        Edit.of(lm, [switch(lm)]) + random_edit(lm, 2),
        Edit.of(lm, [switch(lm, 1, seed=4), preamble(lm, "Bo plays.")]),
        random_edit(lm, 2, seed=5),
    ]
    alone = torch.cat([under(lm, edit, [prompt]) for edit, prompt in zip(edits, PROMPTS, strict=True)])
    with applied_rows(lm, edits):
        together = score(lm, PROMPTS)
    assert close(lm, together, alone)


def test_the_weight_edit_comes_first_whatever_came_first() -> None:
    lm = tiny("gpt2")
    gate, weight = Edit.of(lm, [choosing(lm)]), random_edit(lm, 2)
    with gate.applied(lm), weight.applied(lm):
        nested = score(lm, PROMPTS)
    assert close(lm, nested, under(lm, weight + gate)) and close(lm, nested, under(lm, gate + weight))


def test_what_was_read_without_the_edit_is_not_continued_with_it() -> None:
    lm = tiny("gpt2")
    ids = lm.encode(PROMPTS[0]).ids
    outside = prefill(lm, ids)
    with Edit.of(lm, [switch(lm)]).applied(lm), torch.no_grad():
        with pytest.raises(EditError, match="Read the prompt again"):
            lm.forward(ids[:, :1], cache=outside.prefix.cache())
        inside = prefill(lm, ids)
        lm.forward(ids[:, :1], cache=inside.prefix.cache())
        assert inside.prefix.until(2).text is None  # the prompt's end is read anew, so the gate would choose anew
        with pytest.raises(EditError, match="part of the model"):
            lm.model.transformer(ids)
    with Edit.of(lm, [preamble(lm, "Bo")]).applied(lm), torch.no_grad():
        with pytest.raises(EditError, match="read without it"):
            lm.forward(ids[:, :1], cache=outside.prefix.cache())
        with pytest.raises(EditError, match="token ids"):
            resume(lm, torch.zeros(1, 2, lm.d_model), layer=1)


def test_a_gate_acts_in_a_pass_from_the_middle() -> None:
    lm = tiny("gpt2")
    ids = lm.encode(PROMPTS[0]).ids
    with Edit.of(lm, [switch(lm)]).applied(lm), torch.no_grad():
        states: list[torch.Tensor] = []
        handle = lm.blocks[0].register_forward_hook(
            lambda _m, _a, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        whole = lm.forward(ids, keep=1)
        handle.remove()
        assert torch.allclose(resume(lm, states[0], layer=1), whole, atol=tolerance.of_logits(lm))


def test_an_edit_for_another_place_is_refused() -> None:
    lm = tiny("gpt2")
    wrong = Edit.of(lm, [Switch(module="transformer.h.9", key=torch.ones(2), value=torch.ones(2))])
    with pytest.raises(EditMismatch, match="does not have"):
        wrong.require_fit(lm)
    small = Edit.of(lm, [Switch(module=switch(lm).module, key=torch.ones(2), value=torch.ones(2))])
    with pytest.raises(EditMismatch, match="numbers"):
        small.require_fit(lm)
    with pytest.raises(EditMismatch, match="tokens"):
        Edit.of(lm, [Preamble(ids=torch.tensor([5000]))]).require_fit(lm)


def test_a_gated_edit_is_something_to_do() -> None:
    """Evaluation, exports and the command line asked for weight updates, and took a gated edit for none."""
    from engram.evaluation.measuring import all_under

    lm = tiny("gpt2")
    edit = Edit.of(lm, [choosing(lm)])
    assert edit and not edit.updates
    with all_under(lm, edit):
        inside = score(lm, PROMPTS)
    assert close(lm, inside, under(lm, edit)) and not close(lm, inside, score(lm, PROMPTS))


def test_what_a_gate_cannot_do_is_said(tmp_path: Path) -> None:
    from engram.editing.edited import save_edited

    lm = tiny("gpt2")
    edit = Edit.of(lm, [switch(lm)]) + random_edit(lm)
    assert [type(c).__name__ for c in edit.changes] == ["Switch", "LowRank"]
    for kind in ("peft", "hf"):
        with pytest.raises(EditError, match="no change of weights"):
            edit.export(kind, tmp_path / kind, lm)
    with pytest.raises(EditError, match="no change of weights"):
        save_edited(lm, [edit], tmp_path / "model")
    with pytest.raises(EditError, match="multiplied"):
        _ = 2 * edit
    assert not any(tmp_path.iterdir())
