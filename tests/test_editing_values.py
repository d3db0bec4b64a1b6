"""Values for any site, found together or alone, kept and read again; errors and progress are about the user's facts."""

from pathlib import Path
from typing import Any

import pytest
import tolerance
import torch
from families import tiny

import engram
from edits import golden_fact, golden_json, golden_lm
from engram.editing.parts import values as values_part
from engram.editing.parts.descent import Descent
from engram.editing.parts.targets import says
from engram.editing.parts.values import Values, find_values
from engram.errors import NumericalError
from engram.facts import Fact
from engram.models import LM
from engram.models.continuations import Continuation, continued
from engram.models.hooks import Site, patch

HOW = Descent(steps=6, lr=0.1, stop=None, kl=0.0625, decay=0.0, decay_relative=True, clamp=10.0)
FACTS = [
    Fact("Ann Bell", "{} lives in the city of", "Rome today"),
    Fact("Bo", "It is said that {} plays", "chess"),
    Fact("Cy Dow", "{} works in", "Oslo"),
]
CONTEXTS = ("{}", "It is so. {}")


def loss_with(lm: LM, fact: Fact, site: Site, value: torch.Tensor) -> float:
    """The target's loss after the bare prompt when the site has a value at the subject's last token."""
    at = lm.encode(fact.text).span(0, *fact.subject_chars)[-1]

    def put(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, at] = value.to(tensor)
        return tensor

    whole = continued(lm, [Continuation.after(fact.text, str(fact.target))])
    with torch.no_grad(), patch(lm, {site: put}):
        logits = lm.forward(whole.encoded.ids)[0].log_softmax(-1)
    before = torch.tensor(whole.places[0]) - 1
    return -float(logits[before, whole.ids(0)].mean())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["state", "mlp", "attn", "key"])
def test_a_value_is_what_makes_the_target_likely_at_any_site(family: str, kind: str) -> None:
    lm, site = tiny(family), Site(kind, 1)
    short, whole = (find_values(lm, FACTS, site, HOW, plain=plain) for plain in (False, True))
    assert (short.wanted - whole.wanted).norm() < tolerance.of_descent(lm) * (whole.wanted - whole.start).norm()
    for i, fact in enumerate(FACTS):
        assert loss_with(lm, fact, site, short.wanted[i]) < loss_with(lm, fact, site, short.start[i])


def test_together_is_alone_and_averages_are_over_contexts() -> None:
    lm, site = tiny("gpt2"), Site("state", 2)
    together = find_values(lm, FACTS, site, HOW, contexts=CONTEXTS, together=3)
    alone = Values.joined([find_values(lm, [fact], site, HOW, contexts=CONTEXTS) for fact in FACTS])
    for name, found in together.tensors().items():
        assert (found - alone.tensors()[name]).norm() < tolerance.of_descent(lm) * found.norm()
    assert [record.fact for record in together.records] == FACTS
    assert not torch.equal(together.keys, together.bare_keys) and not torch.equal(together.old, together.start)


def test_an_error_names_the_users_fact_and_progress_is_over_all() -> None:
    lm, site = tiny("gpt2"), Site("mlp", 1)
    told: list[tuple[int, int]] = []
    find_values(lm, FACTS, site, HOW, together=1, progress=lambda _, done, total: told.append((done, total)))
    assert told == [(done, 18) for done in range(1, 19)]

    start = lm.encode(FACTS[0].text).ids.shape[1]  # the longest row is looked at last, and stands first in the list
    module = lm.blocks[3]

    def poison(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] >= start and hidden.requires_grad:
            hidden = hidden * torch.nan
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(poison)
    try:
        with pytest.raises(NumericalError, match="of fact 1 is NaN"):
            find_values(lm, FACTS, site, HOW, together=1, plain=True)
    finally:
        handle.remove()


def test_found_values_are_kept_and_a_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, site, looked = tiny("gpt2"), Site("state", 1), []
    descend = values_part.descend

    def counting(*given: Any, **more: Any) -> Any:
        looked.append(len(more["numbers"]))
        if sum(looked) > 2 and len(looked) == 3:
            raise KeyboardInterrupt
        return descend(*given, **more)

    monkeypatch.setattr(values_part, "descend", counting)
    with pytest.raises(KeyboardInterrupt):
        find_values(lm, FACTS, site, HOW, together=1, kept=tmp_path)
    again = find_values(lm, FACTS, site, HOW, together=3, kept=tmp_path)
    assert looked == [1, 1, 1, 1]  # two were kept, the third is looked for
    same = find_values(lm, FACTS[::-1], site, HOW, kept=tmp_path)
    assert len(looked) == 4 and torch.equal(same.wanted.flip(0), again.wanted)
    assert same.records == again.records[::-1]
    find_values(lm, FACTS[:1], site, HOW, kept=tmp_path, contexts=CONTEXTS)  # whatever differs is found anew
    find_values(lm, FACTS[:1], Site("state", 2), HOW, kept=tmp_path)
    other = engram.Edit.of(lm, {lm.mlp_out_name(3): engram.editing.Dense(torch.randn(lm.mlp_out(3).weight.shape))}, ())
    with other.applied(lm):  # no hash knows of an edit beside the weights; the answer shows it
        find_values(lm, FACTS[:1], site, HOW, kept=tmp_path)
    assert looked[4:] == [1, 1, 1]
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    find_values(lm, FACTS[:1], site, HOW, kept=tmp_path)
    assert looked[4:] == [1, 1, 1, 1]


def test_many_facts_are_asked_in_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, passes = golden_lm(), [0]
    known = [golden_fact(entry) for entry in golden_json("rome")["edits"]]
    facts = [fact for fact in known for fact in (fact, Fact(fact.subject, fact.prompt, fact.original))]
    alone = [says(lm, [fact])[0] for fact in facts]
    forward = LM.forward

    def counting(self: LM, *given: Any, **more: Any) -> Any:
        passes[0] += 1
        return forward(self, *given, **more)

    monkeypatch.setattr(LM, "forward", counting)
    assert says(lm, facts * 8) == alone * 8 and any(alone) and not all(alone)
    assert passes[0] == -(-8 * len(facts) // 64)
    assert says(lm, []) == []
