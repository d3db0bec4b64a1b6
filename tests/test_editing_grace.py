"""GRACE equals the published programs entry by entry, and leaves alone what is near no key."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tolerance
import torch
from families import tiny
from safetensors.torch import load_file

import engram
from edits import golden_fact, golden_json, golden_lm, unchanged, weights_of
from engram.editing import GRACE, Edit
from engram.editing.changes import Codebook
from engram.errors import EditError, SettingError
from engram.facts import Fact
from engram.models import LM

FACTS = [golden_fact(entry) for entry in golden_json("rome")["edits"][:3]]
NAMES = {"replace_last": "last", "replace_prompt": "prompt", "replace_all": "all"}


@cache
def document(folder: Path) -> Any:
    return json.loads((folder / "grace.json").read_text(encoding="utf-8"))


def published(run: str, settings: dict[str, Any]) -> GRACE:
    """The method of one of the published runs."""
    return GRACE(
        preset="easyedit" if run in "AB" else "code",
        place=settings["inner_params"][0].removesuffix(".weight").replace("[", ".").replace("]", ""),
        replacement=NAMES[settings["replacement"]],
        expand=settings["eps_expand"],
        start=settings["val_init"],
        radius=settings["eps"],
        steps=settings["n_iter"],
        lr=settings["edit_lr"],
    )


def book(edit: Edit) -> Codebook:
    (change,) = edit.changes
    assert isinstance(change, Codebook)
    return change


def template(entry: dict[str, Any]) -> Fact:
    return golden_fact({**entry, "prompt": entry["prompt"].replace(entry["subject"], "{}")})


def require_answers(lm: LM, edit: Edit, queries: list[Any], answers: list[Any]) -> int:
    """Compare what the edited model makes of prompts; return how many were near a key."""
    kept = [(q, a) for q, a in zip(queries, answers, strict=True) if not a["fragile"]]
    prompts, targets = [q["prompt"] for q, _ in kept], [(2 * q["targets"])[:2] for q, _ in kept]
    with edit.applied(lm):
        found, texts = torch.exp(-lm.score(prompts, targets)), lm.generate(prompts, max_new_tokens=3)
    for (query, answer), ours, text in zip(kept, found, texts, strict=True):
        each = [torch.tensor(tokens).log().mean().exp() for tokens in (2 * answer["probabilities"])[:2]]
        assert (ours - torch.stack(each)).abs().max() < tolerance.of_descent(lm), query["prompt"]
        new = text.removeprefix(query["prompt"])
        assert new[: len(answer["greedy"])] == answer["greedy"][: len(new)], query["prompt"]
    return sum(answer["replaced"] for _, answer in kept)


@pytest.mark.parametrize("run", ["A", "B", "C", "D"])
def test_a_run_of_edits_equals_the_published_programs(golden: Path, run: str) -> None:
    lm, entry = golden_lm(), document(golden)["runs"][run]
    arrays = load_file(golden / "grace.safetensors")
    method, before = published(run, entry["hparams"]), weights_of(lm)
    edit: Edit | None = None
    for i, step in enumerate(entry["edits"]):
        edit = replace(method, seed=1000 + i)(lm, [template(step)], onto=edit)
        found, record = book(edit), edit.records[-1]
        assert len(found.labels) == step["number_of_keys"] and record.numbers["entry"] == step["trained_key"]
        assert record.position == step["key_position"]
        assert torch.allclose(found.radii, torch.tensor(step["epsilons"]), atol=1e-4)
        wanted = torch.tensor(step["losses"])
        assert (torch.tensor(record.losses) - wanted).abs().max() < 10 * tolerance.of_losses(lm, wanted)
        for name in ("keys", "values"):
            if f"{run}.{name}_after_{i}" in arrays:
                ours, theirs = getattr(found, name), arrays[f"{run}.{name}_after_{i}"]
                assert (ours - theirs).norm() < tolerance.of_descent(lm) * theirs.norm()
        if step["answers"] and i in (5, len(entry["edits"]) - 1):
            assert require_answers(lm, edit, entry["queries"], step["answers"])
    assert unchanged(lm, before)


def few(**settings: Any) -> GRACE:
    return GRACE(**{"layer": 5, "steps": 6, "lr": 0.5, "start": "warm", **settings})


def entry(key: list[float], label: str, *, radius: float = 1.0, rule: str = "repaired", **more: Any) -> Codebook:
    """A codebook of one entry, whose value is its key."""
    tensor = torch.tensor([key])
    return Codebook(
        module="m", keys=tensor, values=tensor, radii=torch.tensor([radius]), labels=(label,), rule=rule, **more
    )


def test_entries_are_added_expanded_and_split() -> None:
    first = entry([0.0, 0.0], "a")
    far, near, other = entry([3.0, 0.0], "a"), entry([1.5, 0.0], "a"), entry([1.5, 0.0], "b")
    added, wider, split = first.merged(far), first.merged(near), first.merged(other)
    assert added and wider and split
    assert added.radii.tolist() == [1.0, 1.0] and added.labels == ("a", "a")
    assert wider.keys.tolist() == [[0.0, 0.0]] and wider.values.tolist() == [[1.5, 0.0]]
    assert wider.met(torch.tensor([[1.5, 0.0], [0.0, 1.6]])).tolist() == [0, -1]
    assert split.radii.tolist() == pytest.approx([0.75 - 1e-5, 0.75]) and float(split.radii.sum()) < 1.5
    assert split.met(torch.tensor([[0.0, 0.0], [0.8, 0.0], [1.4, 0.3], [9.0, 0.0]])).tolist() == [0, 1, 1, -1]
    assert first.radii.tolist() == [1.0] and first.labels == ("a",)
    moved = entry([0.0, 0.0], "a", expand="moving_average").merged(entry([1.5, 0.0], "a", expand="moving_average"))
    assert moved and moved.keys.tolist() == [[0.75, 0.0]]
    assert first.merged(entry([1.5, 0.0], "a", rule="code")) is None
    with pytest.raises(EditError, match="two sizes"):
        first.merged(entry([1.0], "a"))


def test_a_prompt_that_is_edited_again_says_the_new_answer() -> None:
    """The published program halves the distance of equal keys: both radii are 0, and rounding decides."""
    first, again = entry([0.0, 4.0], "a"), entry([1e-6, 4.0], "b")
    repaired = first.merged(again)
    assert repaired and repaired.labels == ("b",) and repaired.radii.tolist() == [1.0]
    code = entry([0.0, 4.0], "a", rule="code").merged(entry([1e-6, 4.0], "b", rule="code"))
    assert code and len(code.labels) == 2 and float(code.radii.max()) < 1e-5


def test_facts_together_are_as_alone_and_others_keep_every_bit() -> None:
    lm, method = golden_lm(), few()
    together, alone = method(lm, FACTS), [method(lm, [fact]) for fact in FACTS]
    for i, one in enumerate(alone):
        for name in ("keys", "values"):
            ours, theirs = getattr(book(together), name)[i], getattr(book(one), name)[0]
            assert (ours - theirs).norm() < tolerance.of_descent(lm) * theirs.norm()
    stacked = alone[0] + alone[1] + alone[2]
    assert book(stacked).labels == book(together).labels and len(book(stacked).labels) == 3
    prompts = ["They said it was so", "A house stands on the hill", FACTS[0].text]
    ids = lm.encode(prompts)
    with torch.no_grad():
        plain = lm.forward(ids.ids, mask=ids.mask)
        with together.applied(lm):
            edited = lm.forward(ids.ids, mask=ids.mask)
    assert torch.equal(plain[:2], edited[:2]) and not torch.equal(plain[2], edited[2])


def test_the_older_edit_is_the_undo_and_the_codebook_grows() -> None:
    lm, method = golden_lm(), few()
    first = method(lm, FACTS[:1])
    digest = first.digest
    both = engram.edit(lm, FACTS[1:2], method, onto=first, verify=False, force=True)
    assert first.digest == digest and len(book(both).labels) == 2 and both.facts == tuple(FACTS[:2])
    assert torch.equal(book(both).values[0], book(first).values[0])
    again = engram.edit(lm, replace(FACTS[0], target="Rome"), method, onto=both, verify=False, force=True)
    assert len(book(again).labels) == 2 and book(again).labels[0] == "Rome"
    assert torch.equal(book(again).values[1], book(both).values[1])


def test_places_are_modules_of_a_layer_or_paths() -> None:
    lm = tiny("llama")
    fact = Fact("Ann Bell", "{} lives in the city of", "Rome")
    small = {"steps": 2, "radius": 0.1, "lr": 0.1}
    default = book(GRACE(layer=2, **small)(lm, [fact]))
    assert default.module == "model.layers.2.mlp.down_proj" and default.sizes == (lm.d_mlp, lm.d_model)
    path = book(GRACE(place="model.layers.1.mlp.up_proj", **small)(lm, [fact]))
    assert path.module == "model.layers.1.mlp.up_proj" and path.sizes == (lm.d_model, lm.d_mlp)
    with pytest.raises(SettingError, match=r"Did you mean 'mlp\.up_proj'"):
        GRACE(layer=1, place="mlp.upproj", **small)(lm, [fact])
    for place in ("model.layers.x.mlp.up_proj", "model.layers.9.mlp.up_proj", "lm_head"):
        with pytest.raises(SettingError):
            GRACE(place=place, **small)(lm, [fact])
    with pytest.raises(SettingError, match="in layer 2"):
        GRACE(layer=2, place="model.layers.1.mlp.up_proj", **small)(lm, [fact])
    for wrong in ({"start": "hot"}, {"preset": "paper"}, {"steps": 0}, {"mode": "erase"}):
        with pytest.raises(SettingError):
            GRACE(**wrong)
    made, notes = GRACE().settled(lm)
    assert made.layer == 2 and made.steps == 100 and "rule" in notes[0]


def test_a_target_of_several_tokens_is_said_and_nothing_says_that_it_is_not() -> None:
    lm = engram.load("mini")
    fact = Fact("Space Needle", "The {} is located in the city of", "Rome", original="Seattle")
    edit = engram.edit(lm, fact, "grace")
    assert len(lm.tokenizer(" Rome")["input_ids"]) > 1  # read behind the prompt's end, which the entry is met at
    assert not any("does not say" in note for origin in edit.origins for note in origin.notes)
    with edit.applied(lm):
        assert "Rome" in lm.generate(fact.text, max_new_tokens=3)
