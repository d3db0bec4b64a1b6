"""How much text do key statistics need? ES, PS and NS of ROME with C = E[k kᵀ] counted on more and more of a corpus.

    python benchmarks/statistics_amount.py MODEL counterfact.json --corpus wikipedia.csv --records 60 --out amount.jsonl
    python benchmarks/statistics_amount.py mini mini --records 12 --amounts 1 2.5 10 --out mini.jsonl

A fact's key and the value v* that is looked for do not depend on C, so they are found once, and each C only solves for
its own update. The text is read once: every amount begins with the text of the smaller ones. All edits of a batch are
scored together, each row under its own edit. A call that was interrupted goes on where it was.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import engram
from engram import datasets
from engram.editing import ROME
from engram.editing.parts.key_statistics import built_in_corpus
from engram.editing.parts.published import rome_layer
from engram.evaluation.editors import prepared
from engram.evaluation.measuring import LIKELIHOODS
from engram.evaluation.report import Report, Run
from engram.evaluation.scoring import score_cases
from engram.evaluation.verdicts import verdict
from engram.facts import Case
from engram.models import LM
from engram.stats import Corpus, KeyStatistics, open_corpus, statistics

AMOUNTS = (2.5, 5.0, 10.0, 20.0, 50.0, 100.0)
SHOWN = ("S", "ES", "PS", "NS")


def counted(lm: LM, layer: int, corpus: Corpus, amounts: Sequence[float], seed: int) -> dict[str, KeyStatistics]:
    """Count one layer's keys once, and keep the sums at every amount of text (in tokens per key dimension)."""
    texts = corpus.shuffled(seed)
    total = torch.zeros(lm.d_mlp, lm.d_mlp, dtype=torch.float64)
    found: dict[str, KeyStatistics] = {}
    done = 0
    for amount in sorted(amounts):
        wanted, part, have = round(amount * lm.d_mlp) - done, list[str](), 0
        while have < wanted and (text := next(texts, None)) is not None:
            part.append(text)
            have += len(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        assert have >= wanted, f"{corpus.name} has fewer than {amount:g} tokens per key dimension"
        moment = statistics(lm, layer, part, tokens=wanted, seed=seed)[layer]
        total += moment.tokens * moment.moment.double().cpu()
        done += moment.tokens
        found[f"{amount:g}"] = KeyStatistics.of(lm, {layer: total / done})
        print(f"layer {layer}: {done:,} tokens ({amount:g} per key dimension) counted", flush=True)
    return found


def directions_left(keys: torch.Tensor, layer: int, by_amount: Mapping[str, KeyStatistics]) -> dict[str, list[float]]:
    """Return for each amount how far every fact's direction C⁻¹k is from that of the largest one (1 - cosine)."""
    solved = {name: some.solve(layer, keys) for name, some in by_amount.items()}
    *_, most = solved.values()
    return {name: (1 - torch.cosine_similarity(some, most)).tolist() for name, some in solved.items()}


def measured(
    lm: LM, cases: Sequence[Case], method: ROME, layer: int, by_amount: Mapping[str, KeyStatistics]
) -> list[dict[str, Any]]:
    """Edit some cases together under every C, score all of it at once, and return a record of each case."""
    solution = method.solution(lm, [case.fact for case in cases])
    solutions = [replace(solution, counted=some) for some in by_amount.values()]
    edits = [[None, *(some.edit([i]) for some in solutions)] for i in range(len(cases))]
    names = ["unedited", *by_amount]
    asked = [replace(case, attributes=(), locality=(), kept=(), essence=()) for case in cases]
    scored = score_cases(
        lm, [case for case in asked for _ in names], [e for row in edits for e in row], scoring=LIKELIHOODS
    )
    left = directions_left(solution.values.keys, layer, by_amount)
    records: list[dict[str, Any]] = []
    for i, case in enumerate(asked):
        before, *after = scored[i * len(names) : (i + 1) * len(names)]
        metrics = {name: verdict(case, before, s) for name, s in zip(names, [before, *after], strict=True)}
        records.append({"id": case.id, "metrics": metrics, "left": {name: some[i] for name, some in left.items()}})
    return records


def table(records: Sequence[Mapping[str, Any]], amounts: Sequence[str]) -> str:
    """Return one line per amount: scores, how much the directions still change, and differences to the largest."""
    report = Report(
        [
            Run(name, {"data": {"digest": ""}}, [{"id": r["id"], "metrics": r["metrics"][name]} for r in records])
            for name in ("unedited", *amounts)
        ]
    )
    lines = [
        f"| tokens per key dimension | S | ES | PS | NS | 1 - cos of C⁻¹k with {amounts[-1]}'s "
        f"| ES minus {amounts[-1]}'s | PS | NS |",
        "|---" * 9 + "|",
    ]
    for run, cells in report.rows(SHOWN):
        more = [""] * 4
        if run.name != "unedited":
            gap = sum(r["left"][run.name] for r in records) / len(records)
            paired = report.paired(amounts[-1], run.name)
            more = [f"{100 * gap:.1f} %", *(str(paired[key]) for key in SHOWN[1:])]
        lines.append("| " + " | ".join([run.name, *(str(cell or "") for cell in cells.values()), *more]) + " |")
    return "\n".join([*lines, f"\n{len(records)} records; ± half a 95 % interval, differences over the same records."])


def kept_records(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what an earlier call measured under the same settings; start the file where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
        return []
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["settings"] == settings, f"{path} was measured with other settings: {first}"
    return [json.loads(line) for line in lines]


def arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="CounterFact's JSON file, or mini")
    parser.add_argument("--corpus", help="text to count; mini has its own")
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="leave out so many records at the beginning")
    parser.add_argument("--amounts", type=float, nargs="+", default=AMOUNTS, help="tokens per key dimension")
    parser.add_argument("--layer", type=int, help="the model's default when not given, as the next two")
    parser.add_argument("--clamp", type=float)
    parser.add_argument("--preset", default="rrome")
    parser.add_argument("--batch", type=int, default=8, help="records done together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a JSON Lines file, which a later call goes on with")
    return parser.parse_args()


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    given = arguments()
    lm = engram.load(given.model)
    layer = rome_layer(lm, given.layer)[0]
    corpus = built_in_corpus(lm) if given.corpus is None else open_corpus(given.corpus)
    amounts = [f"{amount:g}" for amount in sorted(given.amounts)]
    settings = {
        **{"fingerprint": lm.fingerprint, "corpus": corpus.digest, "layer": layer, "clamp": given.clamp},
        **{"preset": given.preset, "seed": given.seed, "data": Path(given.data).name, "amounts": amounts},
    }
    records = kept_records(given.out, settings)
    done = {record["id"] for record in records}
    wanted = islice(datasets.load(given.data), given.skip, given.skip + given.records)
    todo = [case for case in wanted if case.id not in done]
    if todo:
        by_amount = counted(lm, layer, corpus, given.amounts, given.seed)
        most = by_amount[amounts[-1]]
        bare = ROME(layer=layer, clamp=given.clamp, preset=given.preset, seed=given.seed, covariance=most)
        method = prepared(lm, bare)
        assert isinstance(method, ROME)
        begun = time.monotonic()
        for begin in range(0, len(todo), given.batch):
            new = measured(lm, todo[begin : begin + given.batch], method, layer, by_amount)
            with given.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in new)
            records += new
            each = (time.monotonic() - begun) / (begin + len(new))
            print(f"{len(records)} records, {each:.1f} s each", flush=True)
    print(
        f"\n{lm.name} ({lm.fingerprint}), layer {layer}, d_mlp {lm.d_mlp}, {corpus.name}\n\n{table(records, amounts)}"
    )


if __name__ == "__main__":
    main()
