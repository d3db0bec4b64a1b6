"""Reading: streaming JSON, lines in messages, and every kind of broken file."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram import datasets
from engram.datasets import files
from engram.errors import DataError, SettingError
from engram.facts import Fact

GOOD = {"subject": "Space Needle", "prompt": "{} is in", "target": "Rome"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    records=st.lists(st.dictionaries(st.text(max_size=4), json_values, max_size=4), min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    piece=st.integers(1, 40),
)
def test_streaming_a_json_list_gives_what_json_gives_whatever_the_piece(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], indent: int | None, piece: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    text = json.dumps(records, indent=indent, ensure_ascii=False)
    write(path, text)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "_PIECE", piece)
        read = list(files.rows(path))
    assert [row.fields for row in read if isinstance(row, files.Row)] == records
    assert [row.number for row in read if isinstance(row, files.Row)] == list(range(len(records)))


def test_rows_know_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n {"a": 1},\n\n {"a":\n 2}\n, {"a": 3}]')
    assert [row.line for row in files.rows(path) if isinstance(row, files.Row)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"a": 1},\n{"a": ', "line 2.*truncated"),
        ("a.json", '[{"a": 1}\n', "line 2.*truncated"),
        ("a.json", '[{"a": 1},\n{"b": 2} {"c": 3}]', r"line 2.*',' or '\]' expected"),
        ("a.json", '[{"a": 1},\n\n{"b": x}]', "line 3.*broken JSON"),
        ("a.json", '{"a": 1}', "list of records"),
        ("a.json", "[]", "holds no records"),
        ("a.json", "", "list of records"),
        ("a.jsonl", "\n\n", "holds no records"),
        ("a.csv", 'a,"b\n', "line 1.*broken CSV"),
        ("a.txt", "a", "use .json, .jsonl or .csv"),
    ],
)
def test_broken_files_name_the_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(DataError, match=f"(?s)a\\.{name[2:]}.*{says}"):
        list(files.rows(write(tmp_path / name, text)))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"a": 1},\n2,\n{"a": 3}]', "line 2 .*must be an object.*not 2"),
        ("a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n', "line 2 .*broken JSON at column 6"),
        ("a.jsonl", '{"a": 1}\n[]\n{"a": 3}\n', "line 2 .*must be an object"),
        ("a.csv", "a,b\n1,\n1,2,3\n3,\n", "line 3 .*number of cells than the header .a, b."),
        ("a.csv", 'a,b\n1,\n"1"2,\n3,\n', "line 3 .*broken CSV"),
    ],
)
def test_a_broken_record_is_named_and_the_others_go_on(tmp_path: Path, name: str, text: str, says: str) -> None:
    first, broken, last = files.rows(write(tmp_path / name, text))
    assert [int(row.fields["a"]) for row in (first, last) if isinstance(row, files.Row)] == [1, 3]
    assert isinstance(broken, datasets.Skipped)
    assert re.search(says, f"{broken.where}: {broken.reason}")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DataError, match="UTF-8"):
        list(files.rows(path))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "inside.json", "[]")
    with pytest.raises(DataError, match="There is no file"):
        datasets.counterfact(tmp_path / "absent.json")
    with pytest.raises(DataError, match=r"is a folder.*inside\.json"):
        datasets.load(tmp_path)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"subject": "A", "target": "B"}, "prompt: field required"),
        ({**GOOD, "target": ""}, "target: must not be empty"),
        ({**GOOD, "target": 3}, "target: input should be a valid string"),
        ({**GOOD, "paraphrase": ["x"]}, "paraphrase: .*Did you mean 'paraphrases'"),
        ({**GOOD, "kept": [{"prompt": "x", "original": "y"}]}, "exactly one '{}'"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, record: dict[str, object], says: str) -> None:
    path = write(tmp_path / "mine.jsonl", f"{json.dumps(GOOD)}\n\n{json.dumps(record)}\n{json.dumps(GOOD)}\n")
    data = datasets.facts(path)
    assert [case.id for case in data] == ["0", "2"]
    (skipped,) = data.skipped
    assert re.search(rf"mine\.jsonl, line 3 \(record 2\): .*{says}", f"{skipped.where}: {skipped.reason}")


def test_a_file_without_one_good_record_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f"{json.dumps({**GOOD, 'paraphrase': 'x'})}\n{{\n")
    with pytest.raises(DataError, match=r"none of 2 record\(s\) can be used.*line 1 .*Did you mean 'paraphrases'"):
        list(datasets.load(path))
    with pytest.raises(DataError, match="line 1 .*broken JSON"):
        datasets.load(write(tmp_path / "b.jsonl", "{\n{\n"))


def test_the_format_is_that_of_the_first_good_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "subject,prompt,original\n,{} is in,Rome\nEiffel Tower,{} is in,Paris\n")
    data = datasets.load(path)
    (case,) = data
    assert (case.fact.subject, case.fact.target, case.fact.original) == ("Eiffel Tower", None, "Paris")
    assert "line 2" in data.skipped[0].where


def test_a_record_without_a_field_is_named_in_published_formats_too(tmp_path: Path) -> None:
    record = {"requested_rewrite": {"prompt": "{} is", "subject": "A"}, "case_id": 1}
    path = write(tmp_path / "cf.json", json.dumps([record]))
    with pytest.raises(DataError, match=r"requested_rewrite\.target_new: field required \(and 3 more\)"):
        list(datasets.counterfact(path))


def test_csv_and_jsonl_give_the_same_cases(tmp_path: Path) -> None:
    record = {**GOOD, "original": "Seattle", "paraphrases": ["Where is it? In", "It, is in"], "relation": "P1"}
    lines = write(tmp_path / "a.jsonl", json.dumps(record))
    table = write(
        tmp_path / "a.csv",
        "subject,prompt,target,original,paraphrases,relation,neighborhood\n"
        'Space Needle,{} is in,Rome,Seattle,"Where is it? In|It, is in",P1,\n',
    )
    assert list(datasets.facts(table)) == list(datasets.facts(lines))


def test_spaces_around_a_users_texts_are_left_out(tmp_path: Path) -> None:
    record = {key: f" {value} " for key, value in GOOD.items()} | {"paraphrases": ["It is in "], "original": "\tOslo"}
    (case,) = datasets.facts(write(tmp_path / "a.jsonl", json.dumps(record)))
    assert case.fact == Fact("Space Needle", "{} is in", "Rome", "Oslo")
    assert case.paraphrases == ("It is in",)


def test_filled_prompts_and_templates_are_the_same_fact(tmp_path: Path) -> None:
    filled = {**GOOD, "prompt": "Space Needle is in"}
    path = write(tmp_path / "a.jsonl", f"{json.dumps(GOOD)}\n{json.dumps(filled)}\n")
    first, second = datasets.load(path)
    assert first.fact == second.fact
    assert (first.id, second.id) == ("0", "1")


def test_a_subject_outside_its_prompt_is_skipped_counted_and_listed(tmp_path: Path) -> None:
    wrong = {**GOOD, "id": "bad", "prompt": "The Eiffel Tower is in"}
    path = write(tmp_path / "a.jsonl", f"{json.dumps(wrong)}\n{json.dumps(GOOD)}\n")
    data = datasets.load(path)
    assert [case.id for case in data] == ["1"]
    (skipped,) = data.skipped
    assert (skipped.id, "line 1" in skipped.where, "Space Needle" in skipped.reason) == ("bad", True, True)
    assert data.count() == 1
    assert len(data.skipped) == 1  # counted once, however often the file is read


def test_what_is_left_out_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = datasets.facts(write(tmp_path / "a.jsonl", f"{json.dumps(GOOD)}\n{{\n{{\n"))
    for _ in range(2):
        assert data.count() == 1
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        f"a: 2 record(s) left out; the first: {data.skipped[0].where}: {data.skipped[0].reason}"
    ]


def test_the_second_of_two_records_of_one_id_is_left_out(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "id": "x"})
    data = datasets.facts(write(tmp_path / "a.jsonl", f"{line}\n{line}\n"))
    assert [case.id for case in data] == ["x"]
    assert "an earlier record has the id 'x'" in data.skipped[0].reason


def test_unknown_names_and_formats_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Did you mean 'mini'"):
        datasets.load("minni")
    with pytest.raises(DataError, match="no known format has the fields a.*CounterFact: "):
        datasets.load(write(tmp_path / "a.json", '[{"a": 1}]'))
    with pytest.raises(SettingError, match="not both"):
        datasets.facts(tmp_path / "x.jsonl", limit=1, sample=1)
    with pytest.raises(SettingError, match="limit=0"):
        datasets.Selection(limit=0)


def test_a_download_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=r"(?s)no route to host.*put the file at .*counterfact\.json"):
        datasets.download("counterfact", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingError, match="Did you mean 'zsre'"):
        datasets.download("zsr", folder=tmp_path)


def test_a_download_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from io import BytesIO

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: BytesIO(b"[1]"))  # pyright: ignore
    path = datasets.download("zsre", folder=tmp_path)
    assert path.read_bytes() == b"[1]"
    path.unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: BytesIO(b"[2]"))  # pyright: ignore
    with pytest.raises(DataError, match="SHA-256"):
        datasets.download("zsre", folder=tmp_path)
    assert not path.exists()
