"""Many edits in one batch: row i equals the model under edit i alone."""

import pytest
import tolerance
import torch
from families import FAMILIES, tiny

from edits import random_edit, unchanged, weights_of
from engram.editing import Dense, Edit, applied_rows
from engram.errors import EditError, EditMismatch
from engram.models.generation import Generation, generate_batch
from engram.models.scoring import score_batch

PROMPTS = ["Ann lives in the city of", "Bo", "It was said that Cy plays the", "Dee works in"]


def edits_for(lm: object) -> list[Edit | None]:
    dense = random_edit(lm, 2, seed=3)
    full = Edit.of(lm, {name: Dense(update.dense()) for name, update in dense.updates.items()}, ())
    return [random_edit(lm, seed=1, rank=1), None, random_edit(lm, seed=2, rank=3), full]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_row_is_under_its_own_edit(family: str) -> None:
    lm = tiny(family)
    before, edits = weights_of(lm), edits_for(lm)
    answers = [["Rome", "chess today"]] * len(PROMPTS)
    with applied_rows(lm, edits):
        together = score_batch(lm, PROMPTS, answers)
    assert unchanged(lm, before)
    for i, edit in enumerate(edits):
        if edit is None:
            alone = lm.score(PROMPTS[i], answers[i])
        else:
            with edit.applied(lm):
                alone = lm.score(PROMPTS[i], answers[i])
        assert torch.allclose(together[i], alone[0], atol=2 * tolerance.of_log_probability(lm))
    assert not torch.allclose(together, score_batch(lm, PROMPTS, answers), atol=1e-3)


@pytest.mark.parametrize(("many", "rank"), [(40, 1), (5, 9), (3, 1)])
def test_however_many_edits_share_a_batch_and_however_large(many: int, rank: int) -> None:
    """A few small ones share two products, many small ones one batched product, large ones go one after another."""
    lm = tiny("llama")
    edits = [random_edit(lm, seed=i, rank=rank) for i in range(many)]
    rows: list[Edit | None] = [None, *(edits[i % many] for i in range(40)), edits[0]]
    ids = lm.encode([PROMPTS[0]] * len(rows)).ids
    with torch.no_grad():
        alone = [lm.forward(ids[:1])[0]]
        for edit in edits:
            with edit.applied(lm):
                alone.append(lm.forward(ids[:1])[0])
        with applied_rows(lm, rows):
            together = lm.forward(ids)
    wanted = torch.stack([alone[0], *(alone[1 + i % many] for i in range(40)), alone[1]])
    assert torch.allclose(together, wanted, atol=2 * tolerance.of_logits(lm))


def test_generation_row_by_row() -> None:
    lm = tiny("gpt2")
    edits = edits_for(lm)
    with applied_rows(lm, edits):
        texts = generate_batch(lm, PROMPTS, Generation(max_new_tokens=8))
    for i, edit in enumerate(edits):
        if edit is not None:
            with edit.applied(lm):
                assert lm.generate(PROMPTS[i], max_new_tokens=8) == texts[i]
        else:
            assert lm.generate(PROMPTS[i], max_new_tokens=8) == texts[i]


def test_another_number_of_rows_is_refused() -> None:
    lm = tiny("gpt2")
    with pytest.raises(EditError, match="2 row"), applied_rows(lm, edits_for(lm)):
        score_batch(lm, PROMPTS[:2], [["Rome"]] * 2)
    with pytest.raises(EditMismatch), applied_rows(tiny("llama"), edits_for(lm)):
        raise AssertionError("not reached")
    with applied_rows(lm, [None, None]):
        assert torch.equal(score_batch(lm, PROMPTS[:2], [["Rome"]] * 2), score_batch(lm, PROMPTS[:2], [["Rome"]] * 2))
