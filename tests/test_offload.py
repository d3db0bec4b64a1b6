"""Models spread by accelerate over devices, CPU and disk: traces and edits work beside weights that are elsewhere."""

from pathlib import Path

import pytest
import tolerance
import torch
from families import golden_tokenizer, tiny, tiny_model

from edits import random_edit
from engram.editing import FT, ROME, applied_rows
from engram.errors import EditError
from engram.facts import Fact
from engram.locate import trace
from engram.models import LM
from engram.models.scoring import score_batch
from engram.stats import statistics

accelerate = pytest.importorskip("accelerate")
FACT = Fact("Ann Bell", "{} lives in the city of", "Rome")


def offloaded(family: str, folder: Path, kind: str) -> LM:
    """A model whose weights accelerate keeps in CPU memory or on disk and brings in block by block."""
    model = tiny_model(family)
    place = torch.device("cpu")
    if kind == "cpu":
        model = accelerate.cpu_offload(model, execution_device=place)
    else:
        model = accelerate.disk_offload(model, folder / "weights", execution_device=place)
    return LM(model, golden_tokenizer(), name=f"offloaded-{family}")


@pytest.mark.parametrize("kind", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_an_offloaded_model_is_edited_like_any_other(family: str, kind: str, tmp_path: Path) -> None:
    plain, lm = tiny(family), offloaded(family, tmp_path, kind)
    assert lm.mlp_out(1).weight.device.type == "meta" and lm.fingerprint == plain.fingerprint
    method = ROME(layer=1, contexts=["{}", "It is so. {}"], covariance=torch.eye(plain.d_mlp), steps=3, lr=0.05)
    edit, wanted = method(lm, [FACT]), method(plain, [FACT])
    rounding = 2 * tolerance.of_log_probability(plain) + tolerance.of_descent(plain) * wanted.records[0].losses[0]
    name = plain.mlp_out_name(1)
    assert (edit.delta(name) - wanted.delta(name)).norm() < tolerance.of_descent(plain) * wanted.norm()
    with edit.applied(lm), wanted.applied(plain):
        assert torch.allclose(lm.score(FACT.text, ["Rome"]), plain.score(FACT.text, ["Rome"]), atol=rounding)
    tuned, plainly = FT(layer=1, steps=2)(lm, [FACT]), FT(layer=1, steps=2)(plain, [FACT])
    assert (tuned.delta(name) - plainly.delta(name)).norm() < tolerance.of_descent(plain) * plainly.norm()
    with applied_rows(lm, [edit, None]):
        rows = score_batch(lm, [FACT.text] * 2, [["Rome"]] * 2)
    with wanted.applied(plain):
        assert torch.allclose(rows[:1], plain.score(FACT.text, ["Rome"]), atol=rounding)
    assert torch.allclose(rows[1:], plain.score(FACT.text, ["Rome"]), atol=tolerance.of_log_probability(plain))


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_statistics_of_an_offloaded_model(kind: str, tmp_path: Path) -> None:
    lm, texts = offloaded("gpt2", tmp_path, kind), ["Ann lives in Rome.", "Bo plays chess today."]
    found = statistics(lm, 1, texts, cache=tmp_path / "a", tolerance=None)
    wanted = statistics(tiny("gpt2"), 1, texts, cache=tmp_path / "b", tolerance=None)
    difference = (found[1].moment - wanted[1].moment).norm()
    assert difference < 2 * tolerance.of_pass(tiny("gpt2"), 2) * wanted[1].moment.norm()


def test_offloaded_weights_are_not_overwritten_but_the_way_out_is_named(tmp_path: Path) -> None:
    lm = offloaded("gpt2", tmp_path, "cpu")
    with pytest.raises(EditError, match="with edit.applied"):
        random_edit(lm).apply_(lm)
    with pytest.raises(EditError, match="with edit.applied"):
        random_edit(lm).export("hf", tmp_path / "x", lm)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_an_offloaded_model_is_traced_like_any_other(family: str, kind: str, tmp_path: Path) -> None:
    plain, lm = tiny(family), offloaded(family, tmp_path, kind)
    found, wanted = (trace(each, FACT, samples=3, window=3) for each in (lm, plain))
    rounding = tolerance.of_probability(plain)
    assert found.noise == wanted.noise and found.corrupted == pytest.approx(wanted.corrupted, abs=rounding)
    for site in ("state", "mlp", "attn"):
        assert torch.allclose(found.scores[site], wanted.scores[site], atol=rounding)
    severed, plainly = (trace(each, FACT, samples=3, sites=("state",), severed="mlp") for each in (lm, plain))
    assert torch.allclose(severed.scores["state"], plainly.scores["state"], atol=rounding)
