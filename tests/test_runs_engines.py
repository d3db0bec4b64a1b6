"""Engines: the same results from one process and from a cluster, whoever dies on the way."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engram.errors import RunError, SettingError
from engram.runs import Local, Ray, engine_named

TESTS = Path(__file__).parent

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


class Doubling:
    """A worker that doubles, and dies once where it is told to."""

    def __init__(self, marker: Path | None = None, deadly: int = -1, forever: bool = False) -> None:
        self.marker, self.deadly, self.forever = marker, deadly, forever

    def __call__(self) -> Callable[[int], tuple[int, int]]:
        return self.do

    def do(self, job: int) -> tuple[int, int]:
        if job == self.deadly and self.marker is not None and (self.forever or not self.marker.exists()):
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job, 2 * job


def test_the_local_engine_makes_one_worker_and_keeps_the_order() -> None:
    made: list[int] = []

    def build() -> Callable[[int], int]:
        made.append(1)
        return lambda job: job + 1

    assert list(Local().run(build, range(4))) == [1, 2, 3, 4]
    assert made == [1]
    assert list(Local().run(build, [])) == []
    assert made == [1]


def test_engines_by_name() -> None:
    assert engine_named("local") == Local()
    assert engine_named("ray", workers=3) == Ray(workers=3)
    assert engine_named(Local()) == Local()
    with pytest.raises(SettingError, match="Did you mean 'local'"):
        engine_named("loca")
    with pytest.raises(SettingError, match="does not take"):
        engine_named("local", workers=3)
    with pytest.raises(SettingError, match="workers=0"):
        Ray(workers=0)


def test_a_missing_extra_is_a_sentence_that_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match=r"needs the extra 'ray'.*pip install '\.\[ray\]'"):
        next(Ray().run(lambda: lambda job: job, [1]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A real Ray cluster on this machine with room for two workers."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(TESTS))
        patched.setenv("OMP_NUM_THREADS", "1")
        patched.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cluster_gives_the_same_results_and_does_a_dead_workers_job_again(tmp_path: Path) -> None:
    engine = Ray(workers=2)
    results = list(engine.run(Doubling(tmp_path / "died", deadly=5), range(12)))
    assert sorted(results) == [(job, 2 * job) for job in range(12)]
    assert (tmp_path / "died").exists()
    assert len(set(engine.pids)) == 3  # two workers and the one that took the dead one's place


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_job_that_kills_every_worker_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="died 2 times"):
        list(Ray(workers=1, attempts=2).run(Doubling(tmp_path / "died", deadly=1, forever=True), range(3)))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_evaluation_on_a_cluster_is_the_local_one_even_when_a_worker_is_killed(
    tmp_path: Path, counterfact: Path
) -> None:
    import json

    from families import golden_lm

    from editing_fakes import Push
    from engram import datasets
    from engram.evaluation import Scoring, evaluate
    from engram.runs import read_records

    records = json.loads(counterfact.read_text(encoding="utf-8"))[:6]
    many = [{**r, "case_id": f"{turn}-{r['case_id']}"} for turn in range(3) for r in records]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(many), encoding="utf-8")
    engine = Ray(workers=2)
    options: dict[str, Any] = {"method": Push(), "batch": 2, "scoring": Scoring(generate=False, free=False)}
    killer = threading.Thread(target=kill_one, args=(engine, tmp_path / "ray" / "push" / "results.jsonl"))
    killer.start()
    far = evaluate(golden_lm(), datasets.counterfact(data), out=tmp_path / "ray" / "push", engine=engine, **options)
    killer.join()
    near = evaluate(golden_lm(), datasets.counterfact(data), out=tmp_path / "local" / "push", **options)
    ids = [record["id"] for record in read_records(tmp_path / "ray" / "push")]
    assert sorted(ids) == sorted(r["case_id"] for r in many)  # nothing lost, nothing twice
    assert len(engine.pids) == 3
    for key in ("S", "ES", "PS", "NS", "NM"):
        a, b = far.runs[-1].cell(key), near.runs[-1].cell(key)
        assert a is not None
        assert b is not None
        assert (a.value, a.half_width, a.n) == pytest.approx((b.value, b.half_width, b.n), abs=1e-3)


def kill_one(engine: Ray, results: Path) -> None:
    """Kill a worker as soon as the first results are there."""
    for _ in range(12_000):
        if len(engine.pids) >= 2 and results.exists() and results.stat().st_size > 0:
            os.kill(engine.pids[0], signal.SIGKILL)
            return
        time.sleep(0.01)
