"""Runs: the same table whatever the batch, the order or the interruptions; failures are recorded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerance
import torch
from families import GOLDEN_MODEL, golden_lm, golden_tokenizer, tiny_model

from editing_fakes import Push
from engram import datasets
from engram.editing import Dense, Edit
from engram.editing.records import Origin
from engram.errors import DataError, RunError, SettingError
from engram.evaluation import Report, Run, Scoring, evaluate, score_case
from engram.evaluation import work as work_module
from engram.facts import Case, Fact
from engram.models import LM
from engram.runs import read_records

LIGHT = Scoring(generate=False, free=False)
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def cases(counterfact: Path) -> list[Case]:
    return [small(case) for case in datasets.counterfact(counterfact, limit=6)]


def small(case: Case) -> Case:
    """Fewer prompts, and all kinds of them."""
    return Case(
        id=case.id,
        fact=case.fact,
        relation=case.relation,
        paraphrases=case.paraphrases,
        neighborhood=case.neighborhood[:2],
        generation=case.generation[:1],
        references=(f"{case.fact.subject} and {case.fact.target}.",),
        essence=(f"{case.fact.subject} is well known.",),
        kept=(Fact(case.fact.subject, case.fact.prompt, None, case.fact.original),),
        locality=(("The sky is", "blue"),),
    )


def numbers(run: Run) -> dict[str, dict[str, float]]:
    return {str(record["id"]): dict(record["metrics"]) for record in run.scored}


def close(a: Run, b: Run) -> None:
    first, second = numbers(a), numbers(b)
    rounding = 2 * tolerance.of_log_probability(golden_lm())
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert values == pytest.approx(second[name], abs=rounding, rel=rounding), name


def test_the_table_depends_neither_on_the_batch_nor_on_the_order(cases: list[Case]) -> None:
    lm = golden_lm()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    scoring = Scoring(max_tokens=20, held_out=("The sky is blue today.",), rows=5)
    one = evaluate(lm, cases, method=Push(), batch=1, scoring=scoring).runs[-1]
    many = evaluate(lm, cases[::-1], method=Push(), batch=4, scoring=Scoring(max_tokens=20, held_out=scoring.held_out))
    close(one, many.runs[-1])
    wanted = {"S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS", "essence", "efficacy", "paraphrase", "specificity"}
    assert wanted | {"unchanged", "said", "said_paraphrase", "perplexity", "perplexity_median"} <= set(one.columns)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())


def test_an_edit_shows_and_the_unedited_model_stands_beside_it(cases: list[Case]) -> None:
    plain, edited = evaluate(golden_lm(), cases, method=Push(size=30.0), scoring=LIGHT).runs
    assert (plain.name, len(plain.scored), len(edited.scored)) == ("unedited", len(cases), len(cases))
    assert numbers(plain) != numbers(edited)
    assert all(values["unchanged"] == 1 for values in numbers(plain).values())
    assert any(values["unchanged"] < 1 for values in numbers(edited).values())
    (none,) = evaluate(golden_lm(), cases, method="none", scoring=LIGHT).runs
    close(none, plain)


class Stop:
    """A progress function that interrupts after some cases."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.after, self.error = after, error

    def __call__(self, done: int, total: int) -> None:
        if done >= self.after:
            raise self.error


def table(folder: Path) -> list[dict[str, Any]]:
    """All that a results file says, without times."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_records(folder)]


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_an_interrupted_run_goes_on_to_the_same_table(tmp_path: Path, cases: list[Case], protocol: str) -> None:
    lm = golden_lm()

    def run(folder: str, progress: Callable[[int, int], None] | None = None) -> Report:
        return evaluate(
            lm,
            cases,
            method=Push(),
            out=tmp_path / folder / "run",
            protocol=protocol,
            batch=2,
            checkpoints=(1, 3),
            scoring=LIGHT,
            progress=progress,
        )

    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    for after in (1, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run("broken", Stop(after))
        assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    with (tmp_path / "broken" / "run" / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "torn')
    broken, whole = run("broken"), run("whole")
    assert table(tmp_path / "broken" / "run") == table(tmp_path / "whole" / "run")
    assert [run.cell("NS") for run in broken.runs] == [run.cell("NS") for run in whole.runs]
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())


def test_a_finished_run_is_only_read(tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(golden_lm(), cases[:2], method=Push(), out=tmp_path / "run", scoring=LIGHT)
    monkeypatch.setattr(work_module, "score_cases", refuse)
    again = evaluate(golden_lm(), cases[:2], method=Push(), out=tmp_path / "run", scoring=LIGHT)
    assert again.plain() == first.plain()


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("scored once more")


def test_the_unedited_model_is_scored_once_for_all_methods(
    tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[int, bool]] = []
    real = work_module.score_cases

    def counting(lm: Any, some: Any, edits: Any = None, **options: Any) -> Any:
        scored.append((len(some), edits is None))
        return real(lm, some, edits, **options)

    monkeypatch.setattr(work_module, "score_cases", counting)
    for name, size in (("a", 1.0), ("b", 2.0)):
        evaluate(golden_lm(), cases[:4], method=Push(size=size), out=tmp_path / name, batch=2, scoring=LIGHT)
    assert sum(count for count, plain in scored if plain) == 4
    assert sum(count for count, plain in scored if not plain) == 8
    report = Report.read([path for path in sorted(tmp_path.iterdir()) if path.is_dir()])
    assert [run.name for run in report.runs] == ["unedited", "a", "b"]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path, cases: list[Case]) -> None:
    evaluate(golden_lm(), cases[:1], method=Push(), out=tmp_path / "run", scoring=LIGHT)
    with pytest.raises(RunError, match=r"method\.size was 3\.0 and is now 4\.0"):
        evaluate(golden_lm(), cases[:1], method=Push(size=4.0), out=tmp_path / "run", scoring=LIGHT)
    with pytest.raises(RunError, match=r"data\.digest"):
        evaluate(golden_lm(), cases[:2], method=Push(), out=tmp_path / "run", scoring=LIGHT)


def test_cases_that_fail_are_recorded_and_the_others_are_not_touched(tmp_path: Path, cases: list[Case]) -> None:
    lm = golden_lm()
    bad = Push(poison=(cases[1].fact.subject,), refuse=(cases[2].fact.subject,))
    too_long = Case(id="long", fact=cases[0].fact, paraphrases=("word " * 2000,))
    run = evaluate(lm, [*cases[:4], too_long], method=bad, out=tmp_path / "run", batch=5, scoring=LIGHT).runs[-1]
    errors = {str(record["id"]): str(record["error"]) for record in run.failed}
    assert errors.keys() == {cases[1].id, cases[2].id, "long"}
    assert "NaN" in errors[cases[1].id]
    assert errors[cases[2].id].startswith("NumericalError: step 3")
    assert "positions" in errors["long"]
    good = evaluate(lm, [cases[0], cases[3]], method=Push(), scoring=LIGHT).runs[-1]
    close(Run("run", run.settings, run.scored), good)


def test_sequential_edits_are_scored_again_when_others_lie_above_them(tmp_path: Path, cases: list[Case]) -> None:
    lm = golden_lm()
    run = evaluate(
        lm,
        cases[:4],
        method=Push(size=20.0),
        out=tmp_path / "seq",
        protocol="sequential",
        checkpoints=(2,),
        scoring=LIGHT,
    ).runs[-1]
    assert {n: len(records) for n, records in run.retention().items()} == {2: 2, 4: 4}
    steps = [record for record in run.everything if "at" not in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    # By hand: all four updates in the weight at once give what the last checkpoint says.
    weight = lm.mlp_out(1).weight
    kept = weight.detach().clone()
    with torch.no_grad():
        for case in cases[:4]:
            weight += Push(size=20.0)(lm, [case.fact]).delta(lm.mlp_out_name(1))
        try:
            by_hand = lm.score(cases[0].fact.text, [str(cases[0].fact.target), str(cases[0].fact.original)])
        finally:
            weight.copy_(kept)
    last = next(record for record in run.records if record["id"] == cases[0].id)
    np.testing.assert_allclose(last["scores"]["rewrite"], by_hand.numpy(), atol=2 * tolerance.of_log_probability(lm))
    assert last["scores"]["rewrite"] != steps[0]["scores"]["rewrite"]  # later edits changed it


def test_a_sequential_edit_that_fails_leaves_the_pile_as_it_was(cases: list[Case]) -> None:
    lm = golden_lm()
    bad = Push(poison=(cases[1].fact.subject,))
    run = evaluate(lm, cases[:3], method=bad, protocol="sequential", checkpoints=(), scoring=LIGHT).runs[-1]
    assert [r["id"] for r in run.everything if "at" not in r and "error" in r] == [cases[1].id]
    good = evaluate(lm, [cases[0], cases[2]], method=Push(), protocol="sequential", checkpoints=(), scoring=LIGHT).runs[
        -1
    ]
    after = {str(r["id"]): r["scores"]["rewrite"] for r in run.records if "scores" in r}
    for record in good.records:
        np.testing.assert_allclose(
            after[str(record["id"])], record["scores"]["rewrite"], atol=2 * tolerance.of_log_probability(lm)
        )


def test_wrong_options_are_refused(cases: list[Case]) -> None:
    lm = golden_lm()
    with pytest.raises(SettingError, match="Did you mean 'rome'"):
        evaluate(lm, cases, method="romee")
    with pytest.raises(SettingError, match="Did you mean 'single'"):
        evaluate(lm, cases, method="none", protocol="singel")
    with pytest.raises(SettingError, match="Did you mean 'ray'"):
        evaluate(lm, cases, method="none", engine="rai")
    with pytest.raises(SettingError, match="batch=0"):
        evaluate(lm, cases, method="none", batch=0)
    with pytest.raises(SettingError, match="at_once=0"):
        evaluate(lm, cases, method="none", at_once=0)
    with pytest.raises(SettingError, match="'single' puts one case"):
        evaluate(lm, cases, method="none", protocol="single", keep=True)
    for how in ({"at_once": 2}, {"keep": True}):
        with pytest.raises(SettingError, match="engine 'local'"):
            evaluate(lm, cases, method="none", engine="ray", **how)
    with pytest.raises(SettingError, match="no settings"):
        evaluate(lm, cases, method="none", layer=3)
    with pytest.raises(DataError, match="2 cases have the id"):
        evaluate(lm, [cases[0], cases[0]], method="none")


@dataclass(frozen=True, kw_only=True)
class Pushes(Push):
    """Many facts in one Edit, each as `Push` writes it alone; a fact that it refuses spoils the whole Edit."""

    def __call__(self, lm: Any, facts: Sequence[Fact], *, progress: Any = None) -> Edit:
        edits = [Push.__call__(self, lm, [fact]) for fact in facts]
        notes = (f"{len(facts)} facts",)
        return sum(edits[1:], edits[0]) + Edit.of(lm, {}, (Origin(method="push", settings={}, facts=(), notes=notes),))


def rewrites(run: Run) -> list[list[list[float]]]:
    return [record["scores"]["rewrite"] for record in run.records]


def test_a_group_is_in_one_edit_and_every_case_is_scored_under_all_of_it(cases: list[Case]) -> None:
    lm = golden_lm()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    method = Pushes(size=20.0)
    run = evaluate(lm, cases, method=method, at_once=4, batch=3, scoring=LIGHT).runs[-1]
    assert (run.settings["protocol"], run.settings["at_once"]) == ("mass", 4)
    by_hand: list[Any] = []
    for group in (cases[:4], cases[4:]):
        edit = method(lm, [case.fact for case in group])
        by_hand += [score_case(lm, case, edit=edit).rewrite for case in group]
    rounding = 2 * tolerance.of_log_probability(lm)
    for found, wanted in zip(rewrites(run), by_hand, strict=True):
        np.testing.assert_allclose(found, wanted, atol=rounding)
    alone = evaluate(lm, cases, method=method, scoring=LIGHT).runs[-1]
    assert not np.allclose(rewrites(run), rewrites(alone), atol=10 * rounding)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())


def test_a_group_goes_on_from_the_one_before_and_its_edits_are_kept_for_users(
    tmp_path: Path, cases: list[Case]
) -> None:
    lm, method = golden_lm(), Pushes(size=20.0)
    out = tmp_path / "run"
    run = evaluate(
        lm, cases, method=method, out=out, at_once=2, keep=True, checkpoints=(1, 3), scoring=LIGHT, batch=2
    ).runs[-1]
    assert {n: len(records) for n, records in run.retention().items()} == {2: 2, 4: 4, 6: 6}
    steps = [record for record in run.everything if "at" not in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert all({"edit", "after"} <= record["seconds"].keys() for record in steps)
    assert [record.get("notes") for record in steps] == [["2 facts"], None, None, None, None, None]
    assert sorted(place.name for place in out.glob("edit-*")) == ["edit-2", "edit-4", "edit-6"]
    whole = Edit.load(out / "edit-6", lm)
    name = lm.mlp_out_name(1)
    torch.testing.assert_close(whole.delta(name), method(lm, [case.fact for case in cases]).delta(name))
    for found, case in zip(rewrites(run), cases, strict=True):
        wanted = score_case(lm, case, edit=whole).rewrite
        np.testing.assert_allclose(found, wanted, atol=2 * tolerance.of_log_probability(lm))


@pytest.mark.parametrize("keep", [False, True])
def test_an_interrupted_group_goes_on_with_the_edit_that_it_had(
    tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    lm = golden_lm()
    how: dict[str, Any] = {"method": Pushes(refuse=(cases[4].fact.subject,)), "at_once": 3, "keep": keep}
    how |= {"scoring": LIGHT, "checkpoints": ()}
    whole = evaluate(lm, cases, out=tmp_path / "whole" / "run", **how)
    real, scored = work_module.score_cases, [0]

    def dying(*given: Any, **options: Any) -> Any:
        scored[0] += 1
        if scored[0] == 9:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(work_module, "score_cases", dying)
    out = tmp_path / "broken" / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, cases, out=out, **how)
    assert [record["id"] for record in read_records(out) if "error" in record] == [cases[4].id]
    monkeypatch.setattr(work_module, "edit_of", refuse)
    evaluate(lm, cases, out=out, **how)
    assert by_id(out) == by_id(tmp_path / "whole" / "run")
    assert [record["id"] for record in whole.runs[-1].everything if "error" in record] == [cases[4].id]


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(record["id"]): record for record in table(folder)}


def test_kept_edits_of_half_precision_add_up_as_in_single(tmp_path: Path) -> None:
    lm = LM(tiny_model("gpt2").to(torch.bfloat16), golden_tokenizer(), name="half")
    name = lm.mlp_out_name(1)
    weight = lm.mlp_out(1).weight.detach()
    many = [Case(id=str(i), fact=Fact("Rome", f"{i} {{}} is", "in")) for i in range(40)]
    evaluate(lm, many, method=Same(), out=tmp_path / "run", keep=True, checkpoints=(), scoring=LIGHT)
    kept = Edit.load(tmp_path / "run" / "edit-40", lm).delta(name)
    torch.testing.assert_close(kept, torch.full_like(kept, 40 * Same.step))
    rounded = weight.clone()
    for _ in many:
        rounded += Same.step
    assert ((rounded.float() - weight.float()).mean() - 40 * Same.step).abs() > 0.2 * 40 * Same.step


class Same:
    """Adds the same small number to every entry of a weight."""

    step = 5e-5

    def __call__(self, lm: Any, facts: Sequence[Fact], *, progress: Any = None) -> Edit:
        return Edit.of(lm, {lm.mlp_out_name(1): Dense(torch.full(tuple(lm.mlp_out(1).weight.shape), self.step))})


def test_a_method_that_goes_on_by_itself_is_given_the_edit_before(cases: list[Case]) -> None:
    seen: list[int | None] = []

    def method(lm: Any, facts: Sequence[Fact], *, onto: Edit | None = None, progress: Any = None) -> Edit:
        seen.append(None if onto is None else len(onto.changes))
        new = Push()(lm, facts)
        return new if onto is None else onto + new

    evaluate(golden_lm(), cases[:3], method=method, keep=True, checkpoints=(), scoring=LIGHT)
    assert seen == [None, 1, 1]


def test_a_sequential_run_of_version_0_1_is_read_but_not_continued(tmp_path: Path, cases: list[Case]) -> None:
    how: dict[str, Any] = {"method": Push(), "protocol": "sequential", "checkpoints": (), "scoring": LIGHT}
    out = tmp_path / "run"
    first = evaluate(golden_lm(), cases[:2], out=out, **how)
    shutil.rmtree(out / "edit-2")
    (out / "weights.safetensors").touch()
    assert evaluate(golden_lm(), cases[:2], out=out, **how).plain() == first.plain()
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(RunError, match=r"unfinished run of Engram 0\.1.*another folder"):
        evaluate(golden_lm(), cases[:2], out=out, **how)


KILLED = """
import sys
from editing_fakes import Push
from engram import datasets, load
from engram.evaluation import Scoring, evaluate
lm = load(sys.argv[1])
cases = datasets.counterfact(sys.argv[2])
print("go", flush=True)
evaluate(lm, cases, method=Push(), out=sys.argv[3], batch=1, scoring=Scoring(generate=False, free=False))
"""


@pytest.mark.slow
def test_a_killed_run_loses_at_most_the_case_in_flight(tmp_path: Path, counterfact: Path) -> None:
    records = json.loads(counterfact.read_text(encoding="utf-8"))[:6]
    many = [{**record, "case_id": f"{turn}-{record['case_id']}"} for turn in range(3) for record in records]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(many), encoding="utf-8")
    run = tmp_path / "runs" / "push"
    command = [sys.executable, "-c", KILLED, str(GOLDEN_MODEL), str(path), str(run)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    results = run / "results.jsonl"
    while not results.exists() or results.read_bytes().count(b"\n") < 3:
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = read_records(run)
    assert 3 <= len(kept) < len(many)
    lm = golden_lm()
    data = datasets.counterfact(path)
    evaluate(lm, data, method=Push(), out=run, batch=1, scoring=LIGHT)
    whole = evaluate(lm, data, method=Push(), out=tmp_path / "whole" / "push", batch=1, scoring=LIGHT)
    assert [r["id"] for r in read_records(run)] == [r["case_id"] for r in many]
    close(Run.read(run), whole.runs[-1])
