"""The page without a browser, II: zips that come in are judged, never trusted."""

import io
import json
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import tolerance
import torch
from families import tiny

from edits import golden_lm, random_edit
from engram.errors import EditError, EditMismatch
from engram.web.archives import packed, unpacked
from engram.web.limits import Limits

LIMITS = Limits()


def files_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return files_of(packed(random_edit(golden_lm()), "engram", golden_lm()))


def test_an_edit_comes_back_as_it_went(files: dict[str, bytes]) -> None:
    lm = golden_lm()
    assert sorted(files) == ["edit.json", "edit.safetensors"]
    back = unpacked(zipped(files), lm, LIMITS)
    assert back.digest == random_edit(lm).digest


def test_a_zipped_folder_is_an_edit_too(files: dict[str, bytes]) -> None:
    inside = {f"my needle/{name}": content for name, content in files.items()}
    inside["__MACOSX/my needle/._edit.json"] = b"\0"
    assert unpacked(zipped(inside), golden_lm(), LIMITS).digest == random_edit(golden_lm()).digest


def test_a_peft_adapter_goes_out_and_is_recognised_coming_in(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    from transformers import AutoModelForCausalLM

    lm, edit = golden_lm(), random_edit(golden_lm())
    data = packed(edit, "peft", lm)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(lm.model.config._name_or_path)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    ids = lm.encode("John Holzu comes from").ids
    with torch.no_grad(), edit.applied(lm):
        assert torch.allclose(adapted(ids).logits, lm.forward(ids), atol=2 * tolerance.of_logits(lm))
    with pytest.raises(EditError, match="This is a PEFT adapter"):
        unpacked(data, lm, LIMITS)


@pytest.mark.parametrize("data", [b"", b"PK", b"nothing like a zip", b"PK\x03\x04" + bytes(200)])
def test_what_is_no_zip_is_refused(data: bytes) -> None:
    with pytest.raises(EditError, match="no intact zip"):
        unpacked(data, golden_lm(), LIMITS)


def test_a_cut_or_changed_zip_is_refused(files: dict[str, bytes]) -> None:
    data = zipped(files)
    for broken in (data[: len(data) // 2], data[:200] + bytes(100) + data[300:]):
        with pytest.raises(EditError):
            unpacked(broken, golden_lm(), LIMITS)


@pytest.mark.parametrize("name", ["../../edit.json", "/etc/edit.json", "..\\edit.json", "a/../../../edit.json"])
def test_a_path_in_a_zip_leads_nowhere(files: dict[str, bytes], name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.rglob("edit.json"))
    data = zipped({name: files["edit.json"], "edit.safetensors": files["edit.safetensors"]})
    try:
        assert unpacked(data, golden_lm(), LIMITS).digest == random_edit(golden_lm()).digest
    except EditError as error:
        assert "no edit.json" in str(error)
    assert sorted(tmp_path.parent.rglob("edit.json")) == before


def test_a_bomb_is_not_unpacked(files: dict[str, bytes]) -> None:
    small = Limits(unpacked_bytes=1 << 20)
    bomb = zipped({"edit.json": files["edit.json"], "edit.safetensors": bytes(64 << 20)})
    assert len(bomb) < 1 << 20
    with pytest.raises(EditError, match=r"edit.safetensors has more than 1 MiB when unpacked"):
        unpacked(bomb, golden_lm(), small)


def test_sizes_that_a_zip_claims_are_not_believed(files: dict[str, bytes]) -> None:
    bomb = bytearray(zipped({"edit.json": files["edit.json"], "edit.safetensors": bytes(8 << 20)}))
    size = struct.pack("<I", 8 << 20)
    assert bomb.count(size) == 2
    liar = bytes(bomb).replace(size, struct.pack("<I", 100))
    with pytest.raises(EditError):
        unpacked(liar, golden_lm(), Limits(unpacked_bytes=1 << 20))


def test_too_large_too_many_and_twice_are_sentences(files: dict[str, bytes]) -> None:
    lm = golden_lm()
    with pytest.raises(EditError, match="this page takes up to"):
        unpacked(zipped(files), lm, Limits(upload_bytes=10))
    with pytest.raises(EditError, match="The zip has 60 files"):
        unpacked(zipped({f"{i}.txt": b"" for i in range(60)}), lm, LIMITS)
    with pytest.raises(EditError, match="2 files called edit.json"):
        unpacked(zipped({**files, "again/edit.json": b"{}"}), lm, LIMITS)
    with pytest.raises(EditError, match="The zip has no edit.json"):
        unpacked(zipped({"edit.safetensors": b""}), lm, LIMITS)


def test_what_edit_load_refuses_is_refused_without_naming_our_folders(files: dict[str, bytes]) -> None:
    document = json.loads(files["edit.json"])
    document["updates"] = {}
    for broken in (b"{", b"[" * 100_000, json.dumps({**document, "extra": 1}).encode()):
        with pytest.raises(EditError) as refused:
            unpacked(zipped({**files, "edit.json": broken}), golden_lm(), LIMITS)
        assert tempfile.gettempdir() not in str(refused.value)
    with pytest.raises(EditError, match="cut, changed or replaced"):
        unpacked(zipped({**files, "edit.safetensors": files["edit.safetensors"] + b"x"}), golden_lm(), LIMITS)


def test_an_edit_of_another_model_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(EditMismatch, match="was made for"):
        unpacked(zipped(files), tiny("gpt2"), LIMITS)
