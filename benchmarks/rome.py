"""How much faster a ROME edit is than a plain loop that runs the whole network at every step.

    python benchmarks/rome.py                          # GPT-2 small and medium shapes, random weights
    python benchmarks/rome.py --shape small --facts 1 4 16 32
    python benchmarks/rome.py --shape xl --device cuda --dtype bfloat16 --skip-loop

The loop does what the published code does: 21 prompts and the essence prompt in one batch, logits of every position, 20
losses and 19 steps of Adam, gradients for δ alone. Both sides run in this process, on the same model, alternating; the
difference of their losses is printed too. Key statistics are given (the identity), contexts too, so that the search for
v* is what is timed; the factorisation is timed apart. Targets are one token long, as most of CounterFact's are;
`--long` takes one of several tokens.
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from shapes import SHAPES, TOKENIZER, build

from engram.editing import ROME, Edit
from engram.editing.parts.prompts import Wrap, essence_row, padded, rows_for
from engram.editing.parts.published import rome_layer
from engram.facts import Fact
from engram.models import LM, Site, patch
from engram.stats import KeyStatistics

SHORT = ("The weather was nice", "Many people think so", "It was a story", "They talked for hours", "The old man went")
LONG = (
    "The report was published last week by the city",
    "A friend of mine said that it was good",
    "She was born in the city by the sea",
    "He told us a long story about the war",
    "The plans were made by people who knew it",
)
CONTEXTS = ("{}", *(f"{text}. {{}}" for text in (*SHORT, *SHORT, *LONG, *LONG)))
NAMES = ("Space Needle", "Eiffel Tower", "Empire State Building", "Golden Gate Bridge", "Sydney Opera House", "Big Ben")


def facts_for(count: int, *, long: bool) -> list[Fact]:
    """Make facts about different subjects."""
    target = "a very old town" if long else "Rome"
    return [Fact(f"{NAMES[i % len(NAMES)]} {i}", "{} is located in the city of", target) for i in range(count)]


def plain_loop(
    lm: LM, fact: Fact, layer: int, steps: int, contexts_given: Sequence[str] = CONTEXTS, stop: float = 0.0
) -> list[float]:
    """Do what the published code does for one fact; return the losses."""
    rows = rows_for(lm, 0, fact, contexts_given, Wrap(), target=fact.target)
    batch = padded([*rows, essence_row(lm, 0, fact, Wrap(), at_subject=True)])
    ids, mask = batch.ids.to(lm.device), batch.mask.to(lm.device)
    count, contexts = len(rows[0].targets), len(contexts_given)
    targets = torch.tensor([row.targets for row in rows], device=lm.device)
    index = (torch.arange(contexts + 1, device=lm.device), batch.lookup.to(lm.device))
    delta = torch.zeros(lm.d_model, device=lm.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=0.5)
    started: dict[str, torch.Tensor] = {}
    losses: list[float] = []

    def add(value: torch.Tensor) -> torch.Tensor:
        started.setdefault("value", value[0, batch.lookup[0]].detach().float())
        return value.index_put(index, delta.to(value).expand(contexts + 1, -1), accumulate=True)

    for step in range(steps):
        adam.zero_grad()
        with patch(lm, {Site("mlp", layer): add}):
            logits = lm.model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits.float()
        normal = logits.log_softmax(-1)
        chosen = normal[:contexts, -count:].gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        essence = normal[-1, -1]
        before = started.setdefault("essence", essence.detach())
        size = started["value"].norm()
        kept = torch.nn.functional.kl_div(before, essence, log_target=True, reduction="sum")
        loss = -chosen.mean() + 0.0625 * kept + 0.5 * delta.norm() / size**2
        losses.append(loss.item())
        if step == steps - 1 or losses[-1] < stop:
            break
        (delta.grad,) = torch.autograd.grad(loss, delta)
        adam.step()
        with torch.no_grad():
            clamp = 3 if lm.n_layers == 24 else 4  # GPT-2 Medium has its own published clamp
            delta *= (clamp * size / delta.norm()).clamp_max(1)
    return losses


def timed(lm: LM, call: Callable[[], Any]) -> tuple[float, Any]:
    """Run once; seconds and result."""
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = call()
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def peak_memory(lm: LM) -> str:
    """Return the peak memory of the process or the device so far."""
    if lm.device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the device"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB resident"


def method_for(lm: LM, layer: int, arguments: argparse.Namespace) -> tuple[ROME, float]:
    """Return the method with its statistics factorised, and the seconds that took."""
    given = KeyStatistics.of(lm, {layer: torch.eye(lm.d_mlp, device=lm.device)})
    seconds, _ = timed(lm, lambda: given.ridge(layer))
    method = ROME(
        layer=layer,
        preset="code",
        contexts=CONTEXTS,
        covariance=given,
        steps=arguments.steps,
        stop=1e-9,
        facts_per_batch=arguments.batch,
    )
    return method, seconds


def compare(lm: LM, counts: Sequence[int], arguments: argparse.Namespace) -> None:
    """Print one line for one fact beside the loop, and the curve over several facts."""
    layer, _ = rome_layer(lm, None)
    method, factorised = method_for(lm, layer, arguments)
    base = lm.model.requires_grad_(False)
    size = sum(p.numel() * p.element_size() for p in base.parameters()) / 2**30
    print(
        f"{lm.name}, layer {layer}, {lm.dtype}, {lm.device}: weights {size:.2f} GiB, factorisation {factorised:.2f} s"
    )
    one = facts_for(1, long=arguments.long)
    timed(lm, lambda: method(lm, one))  # warms up, and finds out what the model allows
    best, slow, theirs = float("inf"), float("inf"), list[float]()
    edit: Edit | None = None
    for _ in range(arguments.repeats):
        seconds, edit = timed(lm, lambda: method(lm, one))
        best = min(best, seconds)
        if not arguments.skip_loop:
            seconds, theirs = timed(lm, lambda: plain_loop(lm, one[0], layer, arguments.steps))
            slow = min(slow, seconds)
    line = f"  1 fact: engram {best:7.2f} s"
    if edit is not None and theirs:
        ours = edit.records[0].losses
        difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        line += f"  loop {slow:7.2f} s  ratio {slow / best:4.2f}x  largest difference of a loss {difference:.1e}"
    print(f"{line}  peak {peak_memory(lm)}", flush=True)
    for count in counts:
        seconds, _ = timed(lm, lambda n=count: method(lm, facts_for(n, long=arguments.long)))
        print(
            f"  {count:3} facts: {seconds:7.2f} s, {seconds / count:6.3f} s per fact  peak {peak_memory(lm)}",
            flush=True,
        )


def main() -> None:
    """Read the options and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), nargs="+", default=["small", "medium"])
    parser.add_argument("--facts", type=int, nargs="*", default=[], help="also time so many facts in one call")
    parser.add_argument("--batch", type=int, default=4, help="facts optimised at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--long", action="store_true", help="a target of several tokens")
    parser.add_argument("--skip-loop", action="store_true", help="time only engram")
    parser.add_argument("--tokenizer", default=str(TOKENIZER))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    for shape in arguments.shape:
        compare(build(shape, arguments.tokenizer, arguments.device, arguments.dtype), arguments.facts, arguments)


if __name__ == "__main__":
    main()
