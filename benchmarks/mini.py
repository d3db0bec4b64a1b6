"""Acceptance of the built-in model: measures accuracy and the causal picture, checks them, writes card and docs.

Run from the repository root:  python benchmarks/mini.py [--folder FOLDER] --runs FOLDER [--facts 200] [--threads 2]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import engram
from engram.locate.tracing.noise import subject_sigma
from engram.mini import weights_folder
from engram.mini.card import measure_model, tables, write_card, write_measurements
from engram.mini.records import known_facts

DOCS = Path(__file__).parent.parent / "docs" / "mini.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
STATE, MLP, MLP_WIDE, ATTENTION = "state", "MLPs, window of 3", "MLPs, window of 10", "attention, window of 3"
TRAINED, HELD_OUT = 0.98, 0.95


def check(measured: dict[str, Any]) -> list[tuple[str, bool]]:
    """The acceptance criteria of mini, each with whether it holds."""
    accuracy, picture = measured["accuracy"], measured["picture"]
    layers = measured["recipe"]["layers"]
    fetch = measured["recipe"]["fetch_from"]
    found = [
        (f"{name}: whole object >= {least}", accuracy[name]["whole"] >= least)
        for least, names in (
            (TRAINED, ("trained phrasings", "trained phrasings, behind another sentence")),
            (HELD_OUT, ("held-out phrasings", "held-out phrasings, behind another sentence")),
        )
        for name in names
    ]
    found.append(("at least 200 facts traced", picture["facts"] >= 200))
    found.append(("weights of at most 16 MB", measured["bytes"] <= 16e6))
    for site in (STATE, MLP, MLP_WIDE):
        groups = picture["effects"][site]
        last = groups["last subject token"]
        for rivals in (("first subject token", "middle subject tokens"), ("first subsequent token", "further tokens")):
            clear = all(last[layer] > 2 * max(groups[rival][layer] for rival in rivals) for layer in range(fetch))
            found.append(
                (f"{site}: last subject token above twice {' and '.join(rivals)}, layers 0-{fetch - 1}", clear)
            )
    state, attn, mlp = (picture["effects"][site] for site in (STATE, ATTENTION, MLP))
    early = all(state["last subject token"][layer] > state["last token"][layer] for layer in range(fetch))
    late = state["last token"][layers - 1] > state["last subject token"][layers - 1]
    found.append((f"state: the last prompt token takes over only from layer {fetch}", early and late))
    peak = max(range(layers), key=lambda layer: attn["last token"][layer])
    by_attention = peak >= fetch - 1 and attn["last token"][peak] > mlp["last token"][peak]
    found.append(("attention, more than the MLPs, carries the late site", by_attention))
    return found


def draw_picture(folder: Path, *, facts: int, runs: Path, seed: int = 0) -> dict[str, Any]:
    """Average indirect effects over the first `facts` of the seeded list of known facts; resumable in `runs`."""
    lm = engram.load(str(folder))
    known = [
        engram.Fact(item["subject"], item["template"], original=item["attribute"])
        for item in known_facts(count=facts, seed=seed)
    ]
    sigma = subject_sigma(lm, [fact.subject for fact in known])
    effects: dict[str, dict[str, list[float]]] = {}
    for window, sites in ((3, {STATE: "state", MLP: "mlp", ATTENTION: "attn"}), (10, {MLP_WIDE: "mlp"})):
        average = engram.trace_many(
            lm,
            known,
            out=runs / f"window-{window}",
            sites=list(sites.values()),
            window=window,
            noise=3 * sigma,
            seed=seed,
        )
        for title, site in sites.items():
            effects[title] = {
                group: [round(value, 4) for value in means.mean] for group, means in average.effects[site].items()
            }
    return {
        "facts": average.count,
        "samples": 10,
        "noise": 3 * sigma,
        "clean": average.clean.mean,
        "corrupted": average.corrupted.mean,
        "effects": effects,
    }


def write_docs(text: str) -> None:
    """Put the tables between the two marks of docs/mini.md."""
    before, rest = DOCS.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    DOCS.write_text(before + BEGIN + text + END + after, encoding="utf-8")


def main() -> None:
    """Measure, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=weights_folder())
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the traces, so that a run can be resumed")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    measured, missed = measure_model(arguments.folder)
    write_measurements(arguments.folder, measured, missed)
    measured["picture"] = draw_picture(arguments.folder, facts=arguments.facts, runs=arguments.runs)
    write_measurements(arguments.folder, measured, missed)
    write_card(arguments.folder)
    if arguments.folder == weights_folder():
        write_docs(tables(measured))
    print(tables(measured))
    results = check(measured)
    for criterion, holds in results:
        print("ok    " if holds else "FAILED", criterion)
    print(f"{len(missed)} prompts missed; measured in {time.perf_counter() - started:.0f} s")
    raise SystemExit(0 if all(holds for _, holds in results) else 1)


if __name__ == "__main__":
    main()
