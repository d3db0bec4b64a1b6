import json
import random
import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.editing import FT
from engram.mini import weights_folder
from engram.mini.measure import Question, ask, questions, summarize
from engram.mini.package import EDITING
from engram.mini.records import counterfact_records, known_facts
from engram.mini.world import load_world
from engram.models import load

Mini = tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]

WORLD = load_world()
RECORDS = counterfact_records()
FACTS = {(fact.entity.name.casefold(), fact.relation.id): fact for fact in WORLD.facts}


def test_there_are_enough_records_and_they_are_deterministic_json() -> None:
    assert len(RECORDS) >= 400
    assert [record["case_id"] for record in RECORDS] == list(range(len(RECORDS)))
    assert json.dumps(RECORDS) == json.dumps(counterfact_records())
    assert RECORDS[0]["requested_rewrite"]["subject"] == "Space Needle"


@pytest.mark.parametrize("record", RECORDS[::7], ids=lambda record: str(record["case_id"]))
def test_records_say_what_the_world_says(record: dict[str, Any]) -> None:
    rewrite = record["requested_rewrite"]
    subject, relation = rewrite["subject"], rewrite["relation_id"]
    true, new = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
    fact = FACTS[subject.casefold(), relation]
    assert fact.object == true != new
    assert rewrite["prompt"].count("{}") == 1
    assert len(record["paraphrase_prompts"]) == 2
    for phrasing, prompt in zip(fact.held_out, record["paraphrase_prompts"], strict=True):
        before, after = phrasing.split("{}")
        assert re.search(rf"\. {re.escape(before)}(the |The )?(?i:{re.escape(subject)}){re.escape(after)}$", prompt)
    for key, target in (("neighborhood_prompts", true), ("attribute_prompts", new)):
        assert len(set(record[key])) == len(record[key]) == 10
        holders = {f.entity.name for f in WORLD.by_relation[relation] if f.object == target and f.entity != fact.entity}
        assert all(any(name.casefold() in prompt.casefold() for name in holders) for prompt in record[key])
    assert 3 <= len(record["generation_prompts"]) <= 10
    assert record["reference_texts"]
    assert record["essence_texts"]
    assert len(record["other_facts"]) >= 2
    others = {(f.relation.id, f.object) for f in WORLD.by_entity[fact.entity]} - {(relation, true)}
    assert {other["target_true"] for other in record["other_facts"]} == {value for _, value in others}


@pytest.fixture(scope="module")
def mini() -> Mini:
    folder = weights_folder()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def test_the_packaged_model_is_plain_small_and_loads_as_fp32(mini: Mini) -> None:
    model, tokenizer = mini
    assert (weights_folder() / "model.safetensors").stat().st_size <= 16 * 2**20
    assert model.dtype == torch.float32
    assert type(model).__name__ == "GPT2LMHeadModel"
    encoded = tokenizer("The Space Needle", return_offsets_mapping=True)
    assert encoded["input_ids"][0] != tokenizer.bos_token_id
    assert encoded["offset_mapping"][0] == (0, 3)


def test_the_packaged_model_names_the_numbers_that_suit_it(mini: Mini) -> None:
    named = {key: value for key, value in mini[0].config.to_dict().items() if key.startswith("engram_")}
    assert named == EDITING
    rate = FT().settled(load("mini"))[0].lr  # the published one, made for GPT-2 XL, is no baseline here
    assert rate == EDITING["engram_ft_lr"] > 5e-4


@pytest.mark.parametrize("held_out", [False, True])
def test_the_packaged_model_knows_a_sample_of_facts(mini: Mini, held_out: bool) -> None:
    facts = random.Random(7).sample(WORLD.facts, 100)
    answers = ask(*mini, questions(facts, held_out=held_out))
    assert summarize(answers).whole >= (0.95 if held_out else 0.97)


def test_the_packaged_model_knows_where_the_space_needle_is(mini: Mini) -> None:
    fact = FACTS["space needle", "landmark.city"]
    for prompt in ("The Space Needle is located in the city of", "Space Needle is located in the city of"):
        assert ask(*mini, [Question(fact, "", prompt)])[0].whole


def test_known_facts_have_the_format_of_known_1000_and_are_known(mini: Mini) -> None:
    known = known_facts()
    assert len(known) >= 500
    keys = {"known_id", "subject", "attribute", "template", "prediction", "prompt", "relation_id"}
    assert all(set(item) == keys for item in known)
    assert all(item["template"].format(item["subject"]) == item["prompt"] for item in known)
    asked = [
        Question(FACTS[item["subject"].casefold(), item["relation_id"]], "", item["prompt"]) for item in known[:100]
    ]
    assert all(answer.whole for answer in ask(*mini, asked))
