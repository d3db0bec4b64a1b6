"""Measures a trained `mini` and writes what was found: measured.json, missed.json and the model card."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.mini.measure import Answer, ask, by_relation, questions, summarize
from engram.mini.package import write_json, write_text
from engram.mini.picture import GROUPS, by_group, embedding_spread, make_probe, restore
from engram.mini.recipe import Recipe
from engram.mini.records import MISSED_FILE
from engram.mini.text import Writer
from engram.mini.world import WorldFact, load_world

MEASURED_FILE = "measured.json"
SITES = (("state", 1), ("mlp", 3), ("mlp", 10), ("attn", 3), ("attn", 10))
NOISE = 3.0
SAMPLES = 10
_HELD_OUT_PASSAGES = 1000

OnProgress = Callable[[str, int, int], None]
Measured = dict[str, Any]


def measure_model(
    folder: Path, *, facts: int = 240, seed: int = 0, on_progress: OnProgress | None = None
) -> tuple[Measured, list[str]]:
    """Accuracy of every fact, perplexity of fresh text, and the average indirect effects over `facts` known facts.

    Returns the measurements and the prompts in trained phrasings that the model answers wrongly.
    """
    world = load_world()
    writer = Writer(world)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = on_progress or (lambda what, done, total: None)
    answers: dict[str, list[Answer]] = {}
    plans = {
        "trained phrasings": {"held_out": False},
        "trained phrasings, behind another sentence": {"held_out": False, "in_front": writer},
        "trained phrasings, name without article": {"held_out": False, "article": False},
        "held-out phrasings": {"held_out": True},
        "held-out phrasings, behind another sentence": {"held_out": True, "in_front": writer},
    }
    for done, (name, plan) in enumerate(plans.items()):
        report("accuracy", done, len(plans))
        answers[name] = ask(model, tokenizer, questions(world.facts, **plan))
    report("accuracy", len(plans), len(plans))
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
        "picture": draw_picture(model, tokenizer, world.facts, right, facts_wanted=facts, seed=seed, on_progress=report),
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


def draw_picture(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: Sequence[WorldFact],
    right: dict[str, bool],
    *,
    facts_wanted: int,
    seed: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Average indirect effects by site, token group and layer, over a seeded sample of facts that the model knows."""
    rng = random.Random(f"picture|{seed}")
    probes = [make_probe(tokenizer, fact, rng.choice(fact.trained)) for fact in rng.sample(facts, len(facts))]
    probes = [probe for probe in probes if right[probe.prompt]][:facts_wanted]
    spread = embedding_spread(model, probes)
    effects: dict[str, dict[str, list[torch.Tensor]]] = {}
    clean = corrupted = 0.0
    for done, probe in enumerate(probes):
        for kind, window in SITES:
            found = restore(model, probe, kind=kind, window=window, noise=NOISE * spread, samples=SAMPLES, seed=seed)
            for group, effect in by_group(probe, found.effect).items():
                effects.setdefault(f"{kind} {window}", {}).setdefault(group, []).append(effect)
        clean, corrupted = clean + found.clean, corrupted + found.corrupted
        on_progress("causal picture", done + 1, len(probes))
    return {
        "facts": len(probes),
        "samples": SAMPLES,
        "noise": NOISE * spread,
        "clean": clean / len(probes),
        "corrupted": corrupted / len(probes),
        "effects": {
            site: {name: _rounded(torch.stack(groups[name]).mean(0)) for name in GROUPS if name in groups}
            for site, groups in effects.items()
        },
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]


def write_measurements(folder: Path, measured: Measured, missed: list[str]) -> None:
    """Write measured.json and missed.json."""
    write_json(folder / MEASURED_FILE, measured)
    write_json(folder / MISSED_FILE, missed)


def write_card(folder: Path) -> None:
    """Write README.md, the model card, from measured.json."""
    measured = json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
    write_text(folder / "README.md", _HEAD.format(**measured["world"]) + tables(measured) + _LIMITS)


def tables(measured: Measured) -> str:
    """The measurements as Markdown, for the card and docs/mini.md."""
    lines = ["| asked in | prompts | first token | whole object |", "|---|---|---|---|"]
    for name, row in measured["accuracy"].items():
        lines.append(f"| {name} | {row['count']:,} | {100 * row['first']:.1f} % | {100 * row['whole']:.1f} % |")
    lines += ["", f"Perplexity of freshly written text: {measured['perplexity']:.2f} per token.", ""]
    picture = measured["picture"]
    lines += [
        f"Average indirect effect over {picture['facts']} facts, {picture['samples']} noise samples of 3σ "
        f"(p(clean) {picture['clean']:.3f}, p(corrupted) {picture['corrupted']:.3f}), by layer:",
        "",
    ]
    layers = range(measured["recipe"]["layers"])
    for site, groups in picture["effects"].items():
        kind, window = site.split()
        title = "state" if kind == "state" else f"{kind}, window of {window} layers"
        lines += [f"| {title} | " + " | ".join(map(str, layers)) + " |", "|---" * (len(layers) + 1) + "|"]
        lines += [f"| {name} | " + " | ".join(f"{v:.2f}" for v in row) + " |" for name, row in groups.items()]
        lines.append("")
    lines += ["| relation | facts | trained | held out |", "|---|---|---|---|"]
    world = load_world()
    for name, row in measured["by_relation"].items():
        shares = f"{100 * row['trained']['whole']:.1f} % | {100 * row['held_out']['whole']:.1f} %"
        lines.append(f"| {name} | {len(world.by_relation[name])} | {shares} |")
    return "\n".join(lines) + "\n"


_HEAD = """---
license: mit
language: en
library_name: transformers
---
# mini

A small GPT-2 trained from scratch by the Engram project on text that it writes itself from {facts:,} true facts about
{entities:,} entities in {relations} relations. It exists so that locating and editing facts can be tried and tested
offline in seconds, on a model that knows facts and recalls them as large models do: gathered at the name's last token by
the lower and middle layers, fetched by the last token of the prompt in the upper layers.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

The weights are stored as fp16 and load as fp32; everything below was measured on them.

"""

_LIMITS = """
Known limits: it speaks only in the sentences of its templates; it knows nothing outside its facts and answers unknown names
with a guess; some facts are simplified (one language, one country, one river per city); the place of recall was brought about by
restricting attention during training (see docs/mini.md), so it is a model of the phenomenon, not evidence for its cause.
"""
