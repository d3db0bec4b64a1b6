"""Run folders survive: killed writers, torn lines, full disks, two processes, other settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engram.errors import RunError
from engram.runs import MemoryStore, RunStore, differing, in_order, read_records, read_run

SETTINGS = {"method": {"name": "rome", "layer": 1}, "seed": 0}
WRITER = """
import sys
from engram.runs import RunStore
with RunStore(sys.argv[1], {"a": 1}) as store:
    print("open", flush=True)
    for number in range(len(store), 100_000):
        store.append([{"id": str(number), "text": "x" * 2000}])
"""
FULL = """
import resource, sys
from engram.errors import RunError
from engram.runs import RunStore
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
with RunStore(sys.argv[1], {"a": 1}) as store:
    try:
        for number in range(100):
            store.append([{"id": str(number), "text": "x" * 900}])
    except RunError as error:
        print(error)
"""


def test_what_is_appended_comes_back_in_order_and_once(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", SETTINGS) as store:
        store.append([{"id": "b", "x": 1}, {"id": "a", "x": 2}])
        store.append([{"id": "b", "x": 3}, {"id": "ü", "x": 4}])
        assert [r["id"] for r in store.records()] == ["b", "a", "ü"]
        assert store.get("b") == {"id": "b", "x": 1}
        assert store.get("ü") == {"id": "ü", "x": 4}
        assert store.get("z") is None
        assert ("a" in store, "z" in store, len(store)) == (True, False, 3)
    with RunStore(tmp_path / "run", SETTINGS) as store:
        assert store.get("a") == {"id": "a", "x": 2}
    assert [r["id"] for r in in_order(read_records(tmp_path / "run"), ["a", "z", "b"])] == ["a", "b"]


def test_memory_keeps_the_same_promises() -> None:
    store = MemoryStore()
    store.append([{"id": "a", "x": 1}, {"id": "a", "x": 2}])
    assert (store.records(), store.get("a"), "a" in store) == ([{"id": "a", "x": 1}], {"id": "a", "x": 1}, True)


def test_an_unfinished_line_is_cut_off_and_done_again(tmp_path: Path) -> None:
    with RunStore(tmp_path, SETTINGS) as store:
        store.append([{"id": "a"}])
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "b", "x"')
    assert [r["id"] for r in read_records(tmp_path)] == ["a"]
    with RunStore(tmp_path, SETTINGS) as store:
        assert "b" not in store
        store.append([{"id": "b", "x": 1}])
    assert [r["id"] for r in read_records(tmp_path)] == ["a", "b"]


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, SETTINGS) as store:
        store.append([{"id": "a"}])
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write("nonsense\n")
    with pytest.raises(RunError, match="broken line"):
        RunStore(tmp_path, SETTINGS)
    with pytest.raises(RunError, match="broken line"):
        read_records(tmp_path)


def test_other_settings_are_refused_and_the_difference_is_named(tmp_path: Path) -> None:
    RunStore(tmp_path, SETTINGS).close()
    with pytest.raises(RunError, match=r"method\.layer was 1 and is now 2; extra was null and is now true"):
        RunStore(tmp_path, {"method": {"name": "rome", "layer": 2}, "seed": 0, "extra": True})
    RunStore(tmp_path, SETTINGS).close()  # the refusal left it usable


def test_differences_of_settings() -> None:
    assert differing({"a": [1, 2]}, {"a": [1, 2]}) == []
    assert differing({"a": 1}, {}) == ["a was 1 and is now null"]


def test_circumstances_may_differ(tmp_path: Path) -> None:
    RunStore(tmp_path, SETTINGS, circumstances={"torch": "1"}).close()
    RunStore(tmp_path, SETTINGS, circumstances={"torch": "2"}).close()
    assert read_run(tmp_path)["circumstances"] == {"torch": "1"}


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    first = RunStore(tmp_path, SETTINGS)
    with pytest.raises(RunError, match="Another process is writing"):
        RunStore(tmp_path, SETTINGS)
    first.append([{"id": "a"}])  # the refusal did not take the lock away
    first.close()
    RunStore(tmp_path, SETTINGS).close()


def test_shared_folders_take_turns_and_see_each_other(tmp_path: Path) -> None:
    with RunStore(tmp_path, SETTINGS, shared=True) as a, RunStore(tmp_path, SETTINGS, shared=True) as b:
        a.append([{"id": "1", "by": "a"}])
        b.append([{"id": "1", "by": "b"}, {"id": "2", "by": "b"}])
        assert [(r["id"], r["by"]) for r in a.records()] == [("1", "a"), ("2", "b")]


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run folder"):
        read_run(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"id": "a"}\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"no run\.json"):
        RunStore(tmp_path, SETTINGS)
    (tmp_path / "run.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(RunError, match="format 99"):
        RunStore(tmp_path, SETTINGS)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be made"):
        RunStore(tmp_path / "file" / "run", SETTINGS)


def test_killed_at_any_moment_it_loses_at_most_the_line_in_flight(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    before = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(RunError, match="Another process"):
            RunStore(tmp_path, {"a": 1})
        while not results.exists() or results.read_bytes().count(b"\n") < before + 5:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with RunStore(tmp_path, {"a": 1}) as store:  # the lock went with the process
            found = [r["id"] for r in store.records()]
        assert found == [str(number) for number in range(len(found))]
        assert len(found) > before
        before = len(found)


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "disk is full" in result.stdout
    assert "start the same command again" in result.stdout
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert f"{len(lines)} finished" in result.stdout
