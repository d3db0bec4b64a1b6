"""How many CounterFact cases per minute, against a plain loop that does what the published tool does.

    python benchmarks/evaluate.py                                   # GPT-2 small shape, random weights, no generation
    python benchmarks/evaluate.py --generate
    python benchmarks/evaluate.py --shape xl --device cuda --batch 32 --cases 64

The loop takes case after case: a ROME edit in which every step runs the whole network over all 22 rows with logits of
every position (`rome.py`'s loop), the change written into the weight, all prompts with both targets as one padded batch
through the whole network before and after, ten texts of 100 tokens before and after with `generate` (keys and values
cached), the weight put back. Both sides use the same model, contexts, key statistics and presets, one after the other
in this process. Contexts and statistics are made beforehand for both. `--loop-cases` bounds the loop, whose time per
case does not depend on how many there are.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rome import plain_loop
from shapes import DATA, SHAPES, TOKENIZER, build

from engram import datasets
from engram.editing import ROME, edit
from engram.evaluation import Scoring, evaluate
from engram.evaluation.editors import prepared
from engram.facts import Case
from engram.models import LM
from engram.stats import KeyStatistics

LAYERS = {"small": 4, "medium": 8, "xl": 17}


def method_for(lm: LM, layer: int) -> ROME:
    """Return ROME with contexts and key statistics in place: a well-conditioned random matrix."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(lm.d_mlp, 256, generator=generator) / 16
    moment = factor @ factor.T + torch.eye(lm.d_mlp)
    made = prepared(lm, ROME(layer=layer, preset="code", covariance=KeyStatistics.of(lm, {layer: moment})))
    assert isinstance(made, ROME)
    return made


@torch.no_grad()
def plain_scores(lm: LM, case: Case) -> torch.Tensor:
    """Score all prompts with both targets as the published tool does: one padded batch, logits of every position."""
    prompts = [case.fact.text, *case.paraphrases, *case.neighborhood, *case.attributes]
    targets = [str(case.fact.target), str(case.fact.original)]
    tokenizer: Any = lm.tokenizer
    rows = [(tokenizer(p)["input_ids"], tokenizer(f" {t}")["input_ids"]) for p in prompts for t in targets]
    longest = max(len(a) + len(b) for a, b in rows)
    ids = torch.tensor([a + b + [0] * (longest - len(a) - len(b)) for a, b in rows])
    mask = torch.tensor([[1] * (len(a) + len(b)) + [0] * (longest - len(a) - len(b)) for a, b in rows])
    logits = lm.model(ids.to(lm.device), attention_mask=mask.to(lm.device)).logits.float()
    scores: list[float] = []
    for i, (a, b) in enumerate(rows):
        logp = logits[i, len(a) - 1 : len(a) + len(b) - 1].log_softmax(-1)
        scores.append(-float(logp[range(len(b)), b].mean()))
    return torch.tensor(scores).view(-1, 2)


@torch.no_grad()
def plain_texts(lm: LM, case: Case) -> list[str]:
    """Write one text per generation prompt: all of a case as one batch, cached keys and values, 100 tokens in all."""
    encoded = lm.encode(list(case.generation), padding_side="left")
    longest = encoded.ids.shape[1]
    out = lm.model.generate(
        encoded.ids.to(lm.device),
        attention_mask=encoded.mask.to(lm.device),
        do_sample=True,
        top_k=5,
        max_length=100,
        min_length=100,
        pad_token_id=0,
    )
    assert out.shape[1] >= min(100, longest)
    return lm.tokenizer.batch_decode(out, skip_special_tokens=True)


def published_loop(lm: LM, cases: list[Case], method: ROME, *, generate: bool) -> tuple[dict[str, float], list[Any]]:
    """Edit, score and generate case by case; return seconds by stage, and the scores after."""
    layer, contexts = int(method.layer or 0), list(method.contexts or ())
    seconds = {"edit": 0.0, "scores": 0.0, "texts": 0.0}
    after: list[Any] = []

    def timed(stage: str, work: Any, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = work(*arguments)
        if lm.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[stage] += time.perf_counter() - begin
        return result

    for case in cases:
        losses = timed("edit", plain_loop, lm, case.fact, layer, 20, contexts, 0.05)
        made = edit(lm, case.fact, method, force=True)  # not timed: the update that the loop's search leads to
        assert abs(losses[0] - made.records[0].losses[0]) < 1e-3
        timed("scores", plain_scores, lm, case)
        if generate:
            timed("texts", plain_texts, lm, case)
        made.apply_(lm)
        after.append(timed("scores", plain_scores, lm, case))
        if generate:
            timed("texts", plain_texts, lm, case)
        made.revert_(lm)
    return seconds, after


def main() -> None:
    """Time both sides and print cases per minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--loop-cases", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--generate", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA / "counterfact" / "counterfact_400.json")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    lm = build(options.shape, TOKENIZER, options.device, options.dtype)
    cases = list(datasets.load(options.data, limit=options.cases))
    method = method_for(lm, LAYERS[options.shape])
    few = cases[: options.loop_cases]
    scoring = Scoring(generate=options.generate, free=False, rows=options.rows)
    evaluate(lm, cases[:1], method=method, scoring=Scoring(generate=False, free=False))  # warm up

    busy = time.process_time()
    stages, theirs = published_loop(lm, few, method, generate=options.generate)
    loop, loop_busy = sum(stages.values()) / len(few), (time.process_time() - busy) / len(few)
    begin, busy = time.perf_counter(), time.process_time()
    report = evaluate(lm, cases, method=method, scoring=scoring, batch=options.batch)
    ours, ours_busy = (time.perf_counter() - begin) / len(cases), (time.process_time() - busy) / len(cases)
    records = {record["id"]: record for record in report.runs[-1].scored}
    apart = max(
        float((after[3:13] - torch.tensor(records[case.id]["scores"]["neighborhood"])).abs().max())
        for case, after in zip(few, theirs, strict=True)
    )
    parts = {
        name: sum(record["seconds"].get(name, 0.0) for record in records.values()) / len(records)
        for name in ("edit", "before", "after")
    }
    result = {
        "shape": options.shape,
        "device": options.device,
        "generation": options.generate,
        "loop_seconds_per_case": {name: value / len(few) for name, value in stages.items()},
        "engram_seconds_per_case": {**parts, "everything else": ours - sum(parts.values())},
        "loop_cases_per_minute": 60 / loop,
        "engram_cases_per_minute": 60 / ours,
        "times_faster": loop / ours,
        "times_less_processor_time": loop_busy / ours_busy,  # says more than the clock on a machine that is shared
        "largest_difference_of_a_neighborhood_score_after": apart,
    }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
