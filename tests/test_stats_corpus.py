"""Corpora: every kind of file gives the same texts; what is broken is named with its line."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engram.stats.corpus as corpus_module
from engram.errors import DataError, SettingError
from engram.stats import open_corpus

TEXTS = ["Ann lives in Rome.", 'Bo said: "no, never", and left.', "Ä long one"]


def written(folder: Path, suffix: str, texts: list[str]) -> Path:
    path = folder / f"corpus{suffix}"
    match suffix:
        case ".txt":
            path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(texts), encoding="utf-8")
        case ".jsonl":
            path.write_text("\n".join(json.dumps({"text": t, "n": 1}) for t in texts), encoding="utf-8")
        case _:
            with path.open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
                rows.writerows([["id", "text"], *([i, t] for i, t in enumerate(texts))])
    return path


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv", ".tsv"])
def test_every_kind_of_file_gives_its_texts_again_and_again(suffix: str, tmp_path: Path) -> None:
    corpus = open_corpus(written(tmp_path, suffix, TEXTS))
    assert list(corpus.texts()) == TEXTS == list(corpus.texts())
    assert open_corpus(str(tmp_path / f"corpus{suffix}")).digest == corpus.digest
    assert open_corpus(written(tmp_path, suffix, TEXTS[1:])).digest != corpus.digest


@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=30), seed=st.integers(0, 5), size=st.integers(1, 40))
def test_shuffling_loses_nothing_and_is_seeded(texts: list[str], seed: int, size: int) -> None:
    if not any(text.strip() for text in texts):
        return
    corpus = open_corpus(texts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus_module, "BUFFER", size)
        assert sorted(corpus.shuffled(seed)) == sorted(texts)
        assert list(corpus.shuffled(seed)) == list(corpus.shuffled(seed))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.pdf", "x", SettingError, "allowed are"),
        ("a.txt", "\n \n", DataError, "no text"),
        ("a.csv", "id,words\n1,x\n", DataError, "no column 'text', only id, words"),
        ("a.jsonl", '{"text": "fine"}\n{"text": ', DataError, "line 2"),
        ("a.jsonl", '{"words": "x"}', DataError, "line 1"),
        ("a.json", '{"text": "x"}', DataError, "no list"),
        ("a.json", "[1]", DataError, "entry 0"),
        ("a.json", "[", DataError, "a.json"),
    ],
)
def test_broken_files_are_named(name: str, content: str, error: type, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        list(open_corpus(path).texts())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80), suffix=st.sampled_from([".txt", ".json", ".jsonl", ".csv", ".tsv"]))
def test_no_bytes_make_a_reader_fail_in_an_unforeseen_way(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    try:
        texts = list(open_corpus(path).texts())
    except DataError as error:
        assert path.name in str(error)
    else:
        assert all(isinstance(text, str) and text.strip() for text in texts)


class Builder:
    """Stands for the builder of the library 'datasets'."""

    def __init__(self, rows: Iterable[dict[str, str | None]]) -> None:
        self.rows, self.hash, self.config = rows, "abc", SimpleNamespace(name="en")
        self.asked: list[str] = []

    def as_streaming_dataset(self, split: str) -> Iterable[dict[str, str | None]]:
        self.asked.append(split)
        return self.rows


def library(monkeypatch: pytest.MonkeyPatch, builder: Builder) -> list[tuple[str, str | None]]:
    """Put a library with one builder in the place of 'datasets'; return the list of what it is asked for."""
    asked: list[tuple[str, str | None]] = []

    def load_dataset_builder(path: str, config: str | None) -> Builder:
        asked.append((path, config))
        if path == "missing":
            raise FileNotFoundError("no such dataset")
        return builder

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset_builder=load_dataset_builder))
    return asked


def test_a_dataset_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder([{"text": "Ann", "title": "x"}, {"text": " ", "title": "y"}, {"text": None, "title": "z"}])
    asked = library(monkeypatch, builder)
    corpus = open_corpus("hf:some/wiki:en:test")
    assert (asked, builder.asked) == ([("some/wiki", "en")], ["test"])
    assert list(corpus.texts()) == ["Ann"]
    assert corpus.name == "hf:some/wiki:en:test"
    assert open_corpus("hf:some/wiki").digest != corpus.digest
    assert (asked[-1], builder.asked[-1]) == (("some/wiki", None), "train")
    with pytest.raises(DataError, match="no column 'body', only text, title"):
        list(open_corpus("hf:some/wiki", column="body").texts())
    with pytest.raises(SettingError, match="no such dataset"):
        open_corpus("hf:missing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingError, match="pip install datasets"):
        open_corpus("hf:some/wiki")


def test_a_dataset_is_read_while_it_comes_and_says_where_it_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote:
        fetched = 0

        def __iter__(self) -> Iterator[dict[str, str | None]]:
            for self.fetched in range(1, 100):
                yield {"text": f"text {self.fetched}"}
            raise OSError("connection lost")

    remote = Remote()
    library(monkeypatch, Builder(remote))
    corpus = open_corpus("hf:some/wiki")
    texts = corpus.texts()
    assert [next(texts) for _ in range(3)] == ["text 1", "text 2", "text 3"]
    assert remote.fetched == 3
    with pytest.raises(DataError, match="'some/wiki' broke off: connection lost"):
        list(texts)


def test_a_dataset_that_the_library_itself_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the library 'datasets' is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "texts"
    folder.mkdir()
    path = written(folder, ".csv", TEXTS)
    whole = open_corpus(f"hf:{folder}")
    assert list(whole.texts()) == TEXTS
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert list(open_corpus(f"hf:{folder}::train[:2]").texts()) == TEXTS[:2]
    assert open_corpus(f"hf:{folder}").digest == whole.digest
    path.write_text(path.read_text() + "x" * 9, encoding="utf-8")
    assert open_corpus(f"hf:{folder}").digest != whole.digest
