"""Edits on disk: what comes back is what was saved, and nothing that is broken, foreign or newer is ever applied."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edits import DATA, golden_lm, random_edit
from engram.editing import Edit
from engram.errors import EditError, EditMismatch

Spoil = Callable[[Path], None]


def saved(folder: Path, **options: object) -> Path:
    return random_edit(tiny("gpt2"), bias=True, **options).save(folder / "needle")


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    edit = 0.5 * random_edit(lm, bias=True) + random_edit(lm, 2, seed=4)
    back = Edit.load(edit.save(tmp_path / "deep" / "needle"), lm)
    assert back.digest == edit.digest and back.origins == edit.origins and back.version == edit.version
    assert (back.model, back.fingerprint) == (edit.model, edit.fingerprint)
    assert [c.transposed for c in back.updates.values()] == [c.transposed for c in edit.updates.values()]
    assert all(torch.equal(back.delta(name), edit.delta(name)) for name in edit.updates)
    assert back.describe() == edit.describe()
    assert sorted(path.name for path in (tmp_path / "deep" / "needle").iterdir()) == ["edit.json", "edit.safetensors"]


def test_a_loaded_edit_takes_back_what_the_saved_one_wrote(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    before = lm.mlp_out(1).weight.detach().clone()
    edit = random_edit(lm)
    edit.apply_(lm)
    Edit.load(edit.save(tmp_path)).revert_(lm)
    assert torch.equal(lm.mlp_out(1).weight, before)


def test_the_model_is_checked_on_request(tmp_path: Path) -> None:
    with pytest.raises(EditMismatch, match="fingerprint"):
        Edit.load(saved(tmp_path), tiny("llama"))


def _json(change: Callable[[dict], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "edit.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return spoil


def _tensors(change: Callable[[dict], object]) -> Spoil:
    """Change the numbers and make the JSON agree, as somebody who means it would."""

    def spoil(folder: Path) -> None:
        import hashlib

        tensors = load_file(folder / "edit.safetensors")
        change(tensors)
        save_file(tensors, folder / "edit.safetensors")
        digest = hashlib.sha256((folder / "edit.safetensors").read_bytes()).hexdigest()
        _json(lambda d: d.update(tensors_sha256=digest))(folder)

    return spoil


NAME = "transformer.h.1.mlp.c_proj.weight"
BROKEN: dict[str, tuple[Spoil, str]] = {
    "no json": (lambda f: (f / "edit.json").unlink(), "no edit"),
    "no tensors": (lambda f: (f / "edit.safetensors").unlink(), "incomplete"),
    "cut json": (lambda f: (f / "edit.json").write_bytes((f / "edit.json").read_bytes()[:-40]), "damaged"),
    "cut tensors": (
        lambda f: (f / "edit.safetensors").write_bytes((f / "edit.safetensors").read_bytes()[:-4]),
        "cut, changed or replaced",
    ),
    "newer": (_json(lambda d: d.update(format=3, version="9.0", unknown=1)), "newer version"),
    "no format": (_json(lambda d: d.pop("format")), "format"),
    "unknown field": (_json(lambda d: d.update(extra=1)), "extra"),
    "wrong kind": (_json(lambda d: d["changes"][0].update(kind="gate")), "unknown kind"),
    "wrong shape": (_json(lambda d: d["changes"][0]["plain"].update(shape=[1, 2])), "shape"),
    "no orientation": (_json(lambda d: d["changes"][0]["plain"].pop("transposed")), "transposed"),
    "bad fact": (_json(lambda d: d["origins"][0]["facts"][0]["fact"].update(prompt="no place")), "damaged"),
    "bad position": (_json(lambda d: d["origins"][0]["facts"][0].update(position=7)), "token 7"),
    "infinite factor": (_json(lambda d: d["origins"][0].update(factor=float("inf"))), "factor"),
    "not a number": (_tensors(lambda t: t["0.left"].fill_(float("nan"))), "NaN"),
    "missing tensor": (_tensors(lambda t: t.pop("0.left")), "missing"),
    "ranks differ": (_tensors(lambda t: t.update({"0.left": torch.ones(128, 5)})), "damaged"),
    "integers": (_tensors(lambda t: t.update({"0.left": torch.ones(128, 2, dtype=torch.int64)})), "dtype"),
}


def test_a_folder_of_the_first_format_is_read() -> None:
    """Written by version 0.1.0 for the golden model: a projection, its bias, and the unembedding."""
    lm = golden_lm()
    edit = Edit.load(DATA / "edit_format_1", lm)
    head, weight, bias = "lm_head.weight", "transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.bias"
    sums = {name: float(change.dense().double().sum()) for name, change in edit.updates.items()}
    assert sums == pytest.approx({weight: 28.372209547, bias: -2.074504312, head: 95.079286810}, rel=1e-5)
    assert edit.norm() == pytest.approx(444.26710961, rel=1e-5) and edit.facts[0].target == "Rome"
    assert [edit.updates[name].transposed for name in (weight, head)] == [True, False]
    with edit.applied(lm), torch.no_grad():
        logits = lm.forward(lm.encode("Ann lives in").ids)[0, -1, :5]
    assert logits.tolist() == pytest.approx([2.8812, -9.9150, 17.7390, -3.0513, -17.9822], abs=2e-3)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_edit_is_refused_with_a_sentence(case: str, tmp_path: Path) -> None:
    spoil, message = BROKEN[case]
    folder = saved(tmp_path)
    spoil(folder)
    with pytest.raises(EditError, match=message):
        Edit.load(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(which=st.sampled_from(["edit.json", "edit.safetensors"]), data=st.data())
def test_no_damage_of_a_file_gets_through(tmp_path: Path, which: str, data: st.DataObject) -> None:
    folder = saved(tmp_path)
    good = (folder / which).read_bytes()
    kind = data.draw(st.sampled_from(["replace", "cut", "flip", "insert"]))
    at = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=64))
    bad = {
        "replace": junk,
        "cut": good[:at],
        "flip": good[:at] + bytes([good[at] ^ (1 + junk[0] % 255)]) + good[at + 1 :],
        "insert": good[:at] + junk + good[at:],
    }[kind]
    (folder / which).write_bytes(bad)
    try:
        edit = Edit.load(folder)
    except EditError:
        return
    assert which == "edit.json"  # a changed letter of a sentence is still an edit; the numbers are the saved ones
    assert edit.digest == random_edit(tiny("gpt2"), bias=True).digest or set(edit.updates) != {NAME}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(value=JSON_VALUES, data=st.data())
def test_no_json_makes_loading_fail_in_an_unforeseen_way(tmp_path: Path, value: object, data: st.DataObject) -> None:
    folder = saved(tmp_path)
    document = json.loads((folder / "edit.json").read_text())
    place = document
    for _ in range(data.draw(st.integers(0, 3))):
        inner = [v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v]
        if not inner:
            break
        place = data.draw(st.sampled_from(inner))
    key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = value
    (folder / "edit.json").write_text(json.dumps(data.draw(st.sampled_from([document, value]))))
    try:
        Edit.load(folder)
    except EditError as error:
        assert len(str(error)) > 20


def test_a_full_disk_leaves_the_old_edit_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls: list[int] = []
    real = os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EditError, match="No space left"):
        random_edit(tiny("gpt2"), seed=9).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    assert Edit.load(folder).digest == random_edit(tiny("gpt2"), bias=True).digest


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "needle").write_text("mine")
    with pytest.raises(EditError, match="needle"):
        saved(tmp_path)
    assert (tmp_path / "needle").read_text() == "mine"
