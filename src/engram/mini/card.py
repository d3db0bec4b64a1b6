"""Measures a trained `mini` and writes what was found: measured.json, missed.json and the model card."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.mini.measure import Answer, ask, by_relation, questions, summarize
from engram.mini.package import write_json
from engram.mini.recipe import Recipe
from engram.mini.records import MISSED_FILE
from engram.mini.text import Writer
from engram.mini.world import load_world
from engram.storage import write_file

MEASURED_FILE = "measured.json"
_HELD_OUT_PASSAGES = 1000

OnProgress = Callable[[str, int, int], None]
Measured = dict[str, Any]


def measure_model(folder: Path, *, on_progress: OnProgress | None = None) -> tuple[Measured, list[str]]:
    """Accuracy of every fact, and perplexity of freshly written text.

    Returns the measurements and the prompts in trained phrasings that the model answers wrongly.
    """
    world = load_world()
    writer = Writer(world)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = on_progress or (lambda what, done, total: None)
    answers: dict[str, list[Answer]] = {}
    plans = {
        "trained phrasings": questions(world.facts, held_out=False),
        "trained phrasings, behind another sentence": questions(world.facts, held_out=False, in_front=writer),
        "trained phrasings, name without article": questions(world.facts, held_out=False, article=False),
        "held-out phrasings": questions(world.facts, held_out=True),
        "held-out phrasings, behind another sentence": questions(world.facts, held_out=True, in_front=writer),
    }
    for done, (name, asked) in enumerate(plans.items()):
        answers[name] = ask(model, tokenizer, asked)
        report("accuracy", done + 1, len(plans))
    relations = by_relation(answers["trained phrasings"]), by_relation(answers["held-out phrasings"])
    right = {answer.question.prompt: answer.whole for answer in answers["trained phrasings"]}
    measured = {
        "world": {
            "entities": len(world.entities),
            "relations": len(world.relations),
            "facts": len(world.facts),
        },
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "recipe": asdict(Recipe()),
        "accuracy": {name: asdict(summarize(group)) for name, group in answers.items()},
        "by_relation": {
            name: {"trained": asdict(trained), "held_out": asdict(relations[1][name])}
            for name, trained in relations[0].items()
        },
        "perplexity": perplexity(model, tokenizer, writer),
    }
    return measured, [prompt for prompt, known in right.items() if not known]


@torch.inference_mode()
def perplexity(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, writer: Writer) -> float:
    """Perplexity per token of freshly written passages (same facts, sentences drawn with another seed)."""
    total, count = 0.0, 0
    for passage in islice(writer.passages("perplexity"), _HELD_OUT_PASSAGES):
        tokens = torch.tensor([tokenizer.backend_tokenizer.encode(passage.text).ids])
        logits = model(tokens).logits
        total += float(functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    return float(torch.tensor(total / count).exp())


def write_measurements(folder: Path, measured: Measured, missed: list[str]) -> None:
    """Write measured.json and missed.json."""
    write_json(folder / MEASURED_FILE, measured)
    write_json(folder / MISSED_FILE, missed)


def write_card(folder: Path) -> None:
    """Write README.md, the model card, from measured.json."""
    measured = json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
    write_file(folder / "README.md", _HEAD.format(**measured["world"]) + tables(measured) + _LIMITS)


def tables(measured: Measured) -> str:
    """The measurements as Markdown, for the card and docs/mini.md."""
    lines = ["| asked in | prompts | first token | whole object |", "|---|---|---|---|"]
    for name, row in measured["accuracy"].items():
        lines.append(f"| {name} | {row['count']:,} | {100 * row['first']:.2f} % | {100 * row['whole']:.2f} % |")
    lines += ["", f"Perplexity of freshly written text: {measured['perplexity']:.2f} per token.", ""]
    if "picture" in measured:
        lines += _picture_lines(measured["picture"])
    lines += ["| relation | facts | trained | held out |", "|---|---|---|---|"]
    world = load_world()
    for name, row in measured["by_relation"].items():
        shares = f"{100 * row['trained']['whole']:.1f} % | {100 * row['held_out']['whole']:.1f} %"
        lines.append(f"| {name} | {len(world.by_relation[name])} | {shares} |")
    return "\n".join(lines) + "\n"


def _picture_lines(picture: Measured) -> list[str]:
    lines = [
        f"Average indirect effect over {picture['facts']} facts that it knows, {picture['samples']} draws of 3σ noise "
        f"(p(clean) {picture['clean']:.3f}, p(corrupted) {picture['corrupted']:.3f}), by layer:",
        "",
    ]
    for title, groups in picture["effects"].items():
        layers = range(len(next(iter(groups.values()))))
        lines += [f"| {title} | " + " | ".join(map(str, layers)) + " |", "|---" * (len(layers) + 1) + "|"]
        lines += [f"| {name} | " + " | ".join(f"{v:.2f}" for v in row) + " |" for name, row in groups.items()]
        lines.append("")
    return lines


_HEAD = """---
license: mit
language: en
library_name: transformers
---
# mini

A small GPT-2 trained from scratch by the Engram project on text that it writes itself from {facts:,} true facts about
{entities:,} entities in {relations} relations. It exists so that locating and editing facts can be tried and tested
offline in seconds, on a model that knows facts and recalls them as large models do: gathered at the name's last token
by the lower and middle layers, fetched by the last token of the prompt in the upper layers.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

The weights are stored as fp16 and load as fp32; everything below was measured on them.

"""

_LIMITS = """
Known limits. It speaks only in the sentences of its templates. It knows nothing outside its facts and answers unknown
names with a guess. Facts are simplified: one language, one country, one river per city. Countries stand without an
article ("the country of United States"). Many well-known entities are missing. The place of recall was brought about by
restricting attention during training (docs/mini.md), so mini is a model of the phenomenon, not evidence for its cause.
"""
