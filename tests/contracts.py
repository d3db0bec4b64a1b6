"""What every registered Change, Method and Locator must keep, whatever it does: a new one needs no test of this.

Each check takes an example and a model that may be changed, and fails with what was broken.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tolerance
import torch
from torch import Tensor

import engram
from edits import unchanged, weights_of
from engram.editing import Edit, applied_rows, method_named
from engram.editing.changes import KINDS, Change
from engram.editing.methods import METHODS, method_kind
from engram.editing.parts.editor import Editor
from engram.errors import EditError
from engram.facts import Fact
from engram.locate import Grid, averaged, locate_many
from engram.models import LM
from engram.models.fingerprint import fingerprint_of
from engram.models.generation import Generation, generate_batch
from engram.models.scoring import score_batch
from engram.settings import made, plain, settings

PROMPTS = ["Ann lives in the city of", "Bo", "It was said that Cy plays the"]
ANSWERS = ["Rome", "chess today"]


def score(lm: LM, prompts: Sequence[str]) -> Tensor:
    """What a model makes of answers: [prompt answer]."""
    return score_batch(lm, list(prompts), [ANSWERS] * len(prompts))


def check_change(lm: LM, change: Change, folder: Path) -> None:
    """Hold a kind of change against its contract."""
    assert KINDS[change.kind] is type(change), "a kind is registered under its name"
    edit = Edit.of(lm, [change])
    assert edit and edit.changes and len(edit.digest) == 16
    _acts_beside_and_leaves_no_trace(lm, edit)
    _comes_back_from_disk(lm, edit, folder)
    _rows_are_as_alone(lm, edit)
    _padding_does_not_matter(lm, edit)
    _continues_as_it_began(lm, edit)
    _is_taken_back_in_any_order(lm, edit)
    _says_what_it_cannot_do(lm, edit, folder)


def check_method(lm: LM, method: Editor, facts: Sequence[Fact], folder: Path) -> None:
    """Hold a method against its contract, with settings under which a few steps write two facts or more."""
    assert METHODS[method.name].endswith(f":{type(method).__name__}"), "a method is registered under its name"
    before, plain = weights_of(lm), _asked(lm, facts)
    edits = [method(lm, [fact]) for fact in facts]
    assert unchanged(lm, before) and torch.equal(_asked(lm, facts), plain), "the model was changed"
    assert all(edit and edit.facts == (fact,) for edit, fact in zip(edits, facts, strict=True))
    _edits_write_and_are_as_alone(lm, edits, facts, plain)
    _edits_are_kept_stacked_and_taken_back(lm, edits, facts, folder)
    _goes_on(lm, method, edits[0], facts)
    _can_be_said_in_json(method)


def _asked(lm: LM, facts: Sequence[Fact], edits: Sequence[Edit | None] | None = None) -> Tensor:
    """NLL of the targets, each row under its own edit: [fact]."""
    with applied_rows(lm, edits or [None] * len(facts)):
        return score_batch(lm, [fact.text for fact in facts], [[str(fact.target)] for fact in facts])[:, 0]


def _edits_write_and_are_as_alone(lm: LM, edits: Sequence[Edit], facts: Sequence[Fact], plain: Tensor) -> None:
    alone = torch.stack([_asked(lm, [fact], [edit])[0] for fact, edit in zip(facts, edits, strict=True)])
    assert (alone < plain).all(), "a target became no likelier"
    assert close(lm, _asked(lm, facts, edits), alone), "a row depends on the others"
    texts = [f"{fact.text} {fact.target}" for fact in facts]
    for edit, fact in zip(edits, facts, strict=True):
        with edit.applied(lm), torch.no_grad():
            lone = lm.forward(lm.encode(fact.text).ids)[0]
            for side in ("left", "right"):
                encoded = lm.encode([fact.text, *texts], padding_side=side)
                row = lm.forward(encoded.ids, mask=encoded.mask)[0]
                row = row[-len(lone) :] if side == "left" else row[: len(lone)]
                assert torch.allclose(row, lone, atol=4 * tolerance.of_logits(lm)), f"padding on the {side} matters"


def _edits_are_kept_stacked_and_taken_back(lm: LM, edits: Sequence[Edit], facts: Sequence[Fact], folder: Path) -> None:
    before, both = weights_of(lm), edits[0] + edits[1]
    back = Edit.load(both.save(folder / "both"), lm)
    assert back.digest == both.digest and back.facts == both.facts and back.describe() == both.describe()
    beside = _asked(lm, facts, [both] * len(facts))
    assert torch.equal(_asked(lm, facts, [back] * len(facts)), beside)
    both.apply_(lm)
    assert close(lm, _asked(lm, facts), beside)
    both.revert_(lm)
    assert unchanged(lm, before) and lm.acting == [] and lm.overwritten == {}


def _goes_on(lm: LM, method: Editor, first: Edit, facts: Sequence[Fact]) -> None:
    digest = first.digest
    longer = method(lm, facts[1:], onto=first)
    verb = engram.edit(lm, facts[1:], method, onto=first, verify=False, force=True)
    assert first.digest == digest and longer.facts == verb.facts == tuple(facts)
    rows = [longer] * len(facts)
    assert close(lm, _asked(lm, facts, rows), _asked(lm, facts, [verb] * len(facts)))
    assert _asked(lm, facts, rows)[1] < _asked(lm, facts, [first] * len(facts))[1]


def _can_be_said_in_json(method: Editor) -> None:
    known = settings(method_kind(method.name))
    plain = {name: getattr(method, name) for name in known}
    plain = {name: value for name, value in plain.items() if _is_plain(value)}
    typed = json.loads(json.dumps(plain))
    again = method_named(method.name, **{n: tuple(v) if isinstance(v, list) else v for n, v in typed.items()})
    assert {name: getattr(again, name) for name in plain} == plain


def _is_plain(value: object) -> bool:
    plain = (bool, int, float, str, type(None))
    return isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(each, plain) for each in value))


def under(lm: LM, edit: Edit, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Scores under an edit beside the model."""
    with edit.applied(lm):
        return score(lm, prompts)


def close(lm: LM, a: Tensor, b: Tensor) -> bool:
    """Whether scores are equal within rounding."""
    return torch.allclose(a, b, atol=2 * tolerance.of_log_probability(lm))


def _acts_beside_and_leaves_no_trace(lm: LM, edit: Edit) -> None:
    before, plain = weights_of(lm), score(lm, PROMPTS)
    state = Edit.of(lm, edit.changes).digest
    edited = under(lm, edit)
    assert not close(lm, edited, plain), "the example must change what the model says"
    assert torch.equal(under(lm, edit), edited), "asking must not change the answer"
    assert unchanged(lm, before) and torch.equal(score(lm, PROMPTS), plain) and edit.digest == state


def _comes_back_from_disk(lm: LM, edit: Edit, folder: Path) -> None:
    back = Edit.load(edit.save(folder / "edit"), lm)
    assert back.digest == edit.digest and back.describe() == edit.describe()
    assert torch.equal(under(lm, back), under(lm, edit))


def _rows_are_as_alone(lm: LM, edit: Edit) -> None:
    plain, alone = score(lm, PROMPTS), torch.cat([under(lm, edit, [prompt]) for prompt in PROMPTS])
    assert close(lm, under(lm, edit), alone), "a row depends on the others"
    with applied_rows(lm, [edit, None, edit]):
        rows = score(lm, PROMPTS)
    assert close(lm, rows, torch.stack([alone[0], plain[1], alone[2]]))


def _padding_does_not_matter(lm: LM, edit: Edit) -> None:
    with edit.applied(lm), torch.no_grad():
        for side in ("left", "right"):
            encoded = lm.encode(PROMPTS, padding_side=side)
            logits = lm.forward(encoded.ids, mask=encoded.mask)
            for i, prompt in enumerate(PROMPTS):
                alone = lm.forward(lm.encode(prompt).ids)[0]
                row = logits[i, -len(alone) :] if side == "left" else logits[i, : len(alone)]
                assert torch.allclose(row, alone, atol=4 * tolerance.of_logits(lm)), f"padding on the {side} matters"


def _continues_as_it_began(lm: LM, edit: Edit) -> None:
    """Ours and transformers' own generation write the same, with what is kept of the text and without."""
    with edit.applied(lm):
        ours = generate_batch(lm, PROMPTS, Generation(max_new_tokens=6, beyond_end=True))
        encoded = lm.encode(PROMPTS, padding_side="left")
        for cached in (True, False):
            ids = lm.model.generate(
                input_ids=encoded.ids,
                attention_mask=encoded.mask,
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                use_cache=cached,
                pad_token_id=0,
                eos_token_id=None,
            )
            theirs = [lm.tokenizer.decode(row[-6:], skip_special_tokens=True) for row in ids]
            assert all(a.endswith(b) for a, b in zip(ours, theirs, strict=True)), (cached, ours, theirs)


def _is_taken_back_in_any_order(lm: LM, edit: Edit) -> None:
    from edits import random_edit

    before, plain, other = weights_of(lm), score(lm, PROMPTS), random_edit(lm, seed=77)
    beside = under(lm, other + edit)
    for order in ((edit, other), (other, edit)):
        for each in order:
            each.apply_(lm)
        assert close(lm, score(lm, PROMPTS), beside), "weights act first, then the others"
        with_one = _refused(lambda: edit.apply_(lm))
        assert "applied" in with_one
        for each in order:
            each.revert_(lm)
        assert unchanged(lm, before) and torch.equal(score(lm, PROMPTS), plain)
        assert lm.overwritten == {} and lm.acting == []
        assert "not applied" in _refused(lambda: edit.revert_(lm))
    with edit.applied(lm), other.applied(lm):
        assert close(lm, score(lm, PROMPTS), beside), "nested use is the sum"


def _says_what_it_cannot_do(lm: LM, edit: Edit, folder: Path) -> None:
    for action in (lambda: 2 * edit, lambda: edit.export("hf", folder / "hf", lm)):
        message = _refused(action)
        assert message == "" or len(message) > 60, "a refusal says why, and what to do instead"


def _refused(action: Callable[[], Any]) -> str:
    try:
        action()
    except EditError as error:
        return str(error)
    return ""


def check_locator(lm: LM, locator: Any, facts: Sequence[Fact], folder: Path) -> None:
    """Check a locator on a model and a few facts that the model knows, or that name no answer.

    The model stays as it was; a grid is the same when it is saved and loaded; settings survive JSON; the tokenizer's
    padding side plays no part; a fact alone is the same fact among several; progress ends where it is to end.
    """
    before, told = fingerprint_of(lm.model), list[tuple[str, int, int]]()
    found = locator(lm, facts[0], progress=lambda *said: told.append(said))
    assert fingerprint_of(lm.model) == before
    assert all(done == total for _, done, total in told[-1:])
    assert found.text == facts[0].text
    assert found.model == lm.name
    assert len(repr(found).splitlines()) <= 12
    json.dumps(found.to_dict(), allow_nan=False)

    loaded = Grid.load(found.save(folder / "grid"))
    assert torch.equal(loaded.values, found.values)
    assert loaded.to_dict() == found.to_dict()

    kind = type(locator)
    assert made(kind, "it", **json.loads(json.dumps(plain(locator)))) == locator
    assert plain(kind()) == {}

    side = lm.tokenizer.padding_side
    try:
        for lm.tokenizer.padding_side in ("left", "right"):
            torch.testing.assert_close(locator(lm, facts[0]).values, found.values, atol=1e-6, rtol=1e-6)
    finally:
        lm.tokenizer.padding_side = side

    if "token" not in found.axes or found.groups:
        together, alone = locate_many(lm, facts, by=locator), averaged([found])
        axis = alone.axes.index("token") if "token" in alone.axes else None
        values = together.values[..., 0]
        if axis is not None:
            rows = [together.labels[axis].index(name) for name in alone.labels[axis]]
            values = values.index_select(axis, torch.tensor(rows))
        torch.testing.assert_close(values, alone.values[..., 0], atol=1e-5, rtol=1e-5)
