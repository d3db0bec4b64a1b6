"""The published formats and files: fields, counts, and which paraphrase is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from families import golden_lm

from engram import datasets
from engram.datasets.counterfact import asks_for_the_fact
from engram.facts import Case


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    return shared / "data"


def test_records_in_counterfacts_format_become_cases(counterfact: Path) -> None:
    cases = list(datasets.load(counterfact))
    raw = json.loads(counterfact.read_text(encoding="utf-8"))
    assert len(cases) == len(raw) == 12
    for case, record in zip(cases, raw, strict=True):
        wanted = record["requested_rewrite"]
        assert case.fact.text == wanted["prompt"].format(wanted["subject"])
        assert (case.fact.target, case.fact.original) == (wanted["target_new"]["str"], wanted["target_true"]["str"])
        assert (case.relation, case.paraphrases) == (wanted["relation_id"], tuple(record["paraphrase_prompts"]))
        assert (case.neighborhood, case.attributes) == (
            tuple(record["neighborhood_prompts"]),
            tuple(record["attribute_prompts"]),
        )


def test_records_in_zsres_format_become_cases(zsre: Path) -> None:
    data = datasets.load(zsre)
    cases = list(data)
    assert (len(cases), [item.id for item in data.skipped]) == (11, ["7"])  # the eighth has no target
    first = cases[0]
    assert first.fact.text == "Who designed Dordorul Cathedral?"
    assert (first.fact.target, first.fact.original) == ("Palladio", "Gehry")
    assert first.paraphrases == ("Who was the architect of Dordorul Cathedral?",)
    assert first.locality == (("nq question: what is the capital of the country with the longest coast?", "Ottawa"),)


def test_counterfact_has_the_published_fields(data: Path) -> None:
    path = data / "counterfact" / "counterfact_400.json"
    cases = list(datasets.load(path))
    assert len(cases) == 400
    assert {(len(c.paraphrases), len(c.neighborhood), len(c.attributes), len(c.generation)) for c in cases} == {
        (2, 10, 10, 10)
    }
    raw = {str(r["case_id"]): r["requested_rewrite"] for r in json.loads(path.read_text(encoding="utf-8"))}
    for case in cases:
        wanted = raw[case.id]
        assert case.fact.text == wanted["prompt"].format(wanted["subject"])
        assert (case.fact.target, case.fact.original) == (wanted["target_new"]["str"], wanted["target_true"]["str"])
        assert case.relation == wanted["relation_id"]


def test_all_easyedit_records_load_in_a_few_seconds(data: Path) -> None:
    code = """if True:
        import sys, time
        from engram import datasets
        begin = time.process_time()
        count = sum(datasets.load(path).count() for path in sys.argv[1:])
        print(count, time.process_time() - begin)"""
    paths = [str(path) for path in (data / "counterfact_easyedit").glob("*.json")]
    result = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    count, seconds = result.stdout.split()
    assert int(count) == 21_919
    assert float(seconds) < 3


def test_easyedit_records_are_complete(data: Path) -> None:
    cases = [
        case
        for name in ("edit", "train", "val")
        for case in datasets.load(data / "counterfact_easyedit" / f"counterfact-{name}.json")
    ]
    assert len({case.id for case in cases}) == 21_919
    assert all(case.locality and case.neighborhood for case in cases)
    share = sum(bool(case.paraphrases) for case in cases) / len(cases)
    assert 0.16 < share < 0.18  # one in six
    assert all(len(case.paraphrases) + len(case.generation) == 1 for case in cases)


def test_both_formats_agree_about_what_is_a_paraphrase(data: Path) -> None:
    original = {case.id: case for case in datasets.load(data / "counterfact" / "counterfact_400.json")}
    compared = 0
    for name in ("edit", "train", "val"):
        for case in datasets.load(data / "counterfact_easyedit" / f"counterfact-{name}.json"):
            if case.id in original:
                full = original[case.id]
                compared += 1
                assert case.fact == full.fact
                assert set(case.paraphrases) <= set(full.paraphrases)
                assert set(case.generation) <= set(full.generation)
                assert set(case.neighborhood) <= set(full.neighborhood)
    assert compared == 400


def test_the_rule_for_paraphrases_holds_for_every_prompt_at_hand(data: Path) -> None:
    for case in datasets.load(data / "counterfact" / "counterfact_400.json"):
        assert all(asks_for_the_fact(prompt, case.fact.subject) for prompt in case.paraphrases)
        assert not any(asks_for_the_fact(prompt, case.fact.subject) for prompt in case.generation)


def test_zsre_follows_the_protocol(data: Path) -> None:
    path = data / "zsre" / "zsre_eval_800.json"
    first = next(iter(datasets.load(path)))
    assert first.fact.text == "When was the inception of IAAF Combined Events Challenge?"
    assert (first.fact.target, first.fact.original) == ("2006", "1998")
    assert first.locality == (("nq question: what is the name of the last episode of spongebob?", "The String"),)
    taught = next(iter(datasets.zsre(path, target="answer")))
    assert (taught.fact.target, taught.fact.original) == ("1998", None)
    assert datasets.zsre(path).digest != datasets.zsre(path, target="answer").digest


def test_an_empty_target_is_skipped_and_listed(data: Path) -> None:
    train = datasets.load(data / "zsre" / "zsre_train_1000.json")
    assert train.count() == 998
    assert [item.id for item in train.skipped] == ["534", "723"]


def test_known_facts_keep_their_whole_prompt(data: Path) -> None:
    known = list(datasets.load(data / "knowns" / "known_1000.json"))
    assert len(known) == 1209
    assert known[0].fact.text == "Vinson Massif is located in the continent of"
    assert known[0].fact.original == "Antarctica"


def test_wise_sets_load(data: Path) -> None:
    sizes = {p.stem: datasets.load(p).count() for p in sorted((data / "wise").glob("*.json"))}
    assert sizes == {"hallucination-edit": 600, "hallucination-train": 306, "temporal-edit": 75, "temporal-train": 75}
    temporal = next(iter(datasets.load(data / "wise" / "temporal-edit.json")))
    assert temporal.paraphrases == ()
    assert len(temporal.essence) == 1


def test_samples_are_seeded_and_in_the_order_of_the_file(data: Path) -> None:
    everything = datasets.load(data / "counterfact" / "counterfact_400.json")
    order = [case.id for case in everything]

    def drawn(seed: int) -> list[str]:
        return [case.id for case in everything.select(sample=50, seed=seed)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert sorted(drawn(1), key=order.index) == drawn(1)
    assert [case.id for case in everything.select(limit=3)] == order[:3]
    assert everything.select(sample=1000).count() == 400


def test_reading_starts_without_reading_the_whole_file(data: Path, tmp_path: Path) -> None:
    text = (data / "counterfact" / "counterfact_400.json").read_text(encoding="utf-8")
    cut = tmp_path / "cut.json"
    cut.write_text(text[: len(text) // 2], encoding="utf-8")
    assert datasets.load(cut, limit=5).count() == 5


def test_snippets_give_references_and_essence(data: Path, tmp_path: Path) -> None:
    path = data / "counterfact" / "counterfact_400.json"
    samples = [{"name": "Bellingshausen Sea", "text": "A sea."}, {"name": "Angola", "text": "A country."}]
    snippets = tmp_path / "snippets.json"
    snippets.write_text(json.dumps([{"relation_id": "P30", "target_id": "Q51", "samples": samples}]), encoding="utf-8")
    first = next(iter(datasets.counterfact(path, snippets=snippets)))
    assert first.references == ("A sea.", "A country.")
    assert first.essence == ("A country.",)


def test_unknown_facts_are_left_out_for_a_model(counterfact: Path, tmp_path: Path) -> None:
    records = json.loads(counterfact.read_text(encoding="utf-8"))[:6]
    records[2]["requested_rewrite"]["target_true"]["str"] = "Nowhere"
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    lm = golden_lm()
    data = datasets.load(path, skip_unknown=lm)
    kept = {case.id for case in data}
    for case in data.everything():
        assert (case.id in kept) == knows(lm, case)
    assert len(kept) == len(records) - 1 and len(data.skipped) == 1
    assert data.describe()["selection"]["known_to"] == lm.fingerprint


def knows(lm: object, case: Case) -> bool:
    """Whether the model's next token begins the original answer, by plain means."""
    import torch

    prompt = lm.tokenizer(case.fact.text, return_tensors="pt").input_ids  # pyright: ignore
    with torch.no_grad():
        best = int(lm.model(prompt).logits[0, -1].argmax())  # pyright: ignore
    return best == lm.tokenizer(f" {case.fact.original}").input_ids[0]  # pyright: ignore
