"""How much faster `engram.trace` is than a plain loop that does what the published tool does.

    python benchmarks/trace.py                      # GPT-2 small, medium and XL shapes, random weights
    python benchmarks/trace.py --shape small --quick
    python benchmarks/trace.py --shape xl --device cuda --dtype bfloat16

The loop runs one batch of 11 (a clean row and ten noisy ones) with hooks per token and layer, through the whole
network and the unembedding of every position. `--quick` runs the loop on every fourth layer and scales its time up.
Both sides run in this process, on the same model, alternating; the differences of their numbers are printed too.
GFLOP/s counts work that cannot be skipped: the rows and positions that a restoration reaches, and one unembedding per
row.
"""

import argparse
import ctypes
import gc
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from shapes import SHAPES, TOKENIZER, build

from engram.facts import Fact
from engram.locate.tracing.budget import parse_budget
from engram.locate.tracing.noise import Noise, draw
from engram.locate.tracing.settings import TraceSettings
from engram.locate.tracing.staircase import Limits, effective, plan_climbs
from engram.locate.tracing.work import trace_with
from engram.models import LM, Site, patch, record

FACT = Fact("Space Needle", "The {} is in the city of")
NOISE = 0.1


def published_loop(lm: LM, kind: str, window: int, layers: range) -> torch.Tensor:
    """Do what the published tool does: one pass of a batch of 11 per token and layer; p(answer), [token layer]."""
    encoded = lm.encode(FACT.text)
    span = encoded.span(0, *FACT.subject_chars)
    noise = Noise(amount=NOISE, unit="absolute")
    added = draw(lm, noise, samples=10, tokens=len(span), draws="published", seed=0).to(lm.device)
    ids = encoded.ids.repeat(11, 1)

    def disturb(embedded: torch.Tensor) -> torch.Tensor:
        embedded[1:, span.start : span.stop] += added
        return embedded

    def copy_clean(token: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(value: torch.Tensor) -> torch.Tensor:
            value[1:, token] = value[0, token]
            return value

        return change

    with record(lm, []):
        answer = int(lm.model(encoded.ids.to(lm.device)).logits[0, -1].argmax())
    rows: list[list[float]] = []
    for token in range(encoded.ids.shape[1]):
        rows.append([])
        for layer in layers:
            low, high = (layer, layer + 1) if kind == "state" else (layer - window // 2, layer - (-window // 2))
            change = copy_clean(token)
            changes = {Site(kind, at): change for at in range(max(0, low), min(lm.n_layers, high))}
            with torch.no_grad(), patch(lm, {Site("embed"): disturb, **changes}):
                logits = lm.model(ids.to(lm.device)).logits
            rows[-1].append(float(logits[1:, -1].softmax(-1).mean(0)[answer]))
    return torch.tensor(rows)


def needed_flops(lm: LM, kind: str, window: int) -> float:
    """Floating-point operations of the blocks' matrices and the unembedding that no shortcut avoids."""
    encoded = lm.encode(FACT.text)
    length, first = encoded.ids.shape[1], encoded.span(0, *FACT.subject_chars).start
    settings = TraceSettings.of(sites=kind, window=window, noise=NOISE)
    restorations = {
        restoration
        for token in range(first, length)
        for layer in range(lm.n_layers)
        if (
            restoration := effective(
                settings.restoration(settings.sites[0], token, layer, lm.n_layers),
                n_layers=lm.n_layers,
                last=length - 1,
            )
        )
    }
    limits = Limits(groups=[10**9] * (length + 1), seconds_per_block=0.0, seconds_per_position=1.0)
    climbs = plan_climbs(restorations, n_layers=lm.n_layers, length=length, limits=limits)
    block = 2 * (4 * lm.d_model * lm.d_model + 2 * lm.d_model * lm.d_mlp)
    work = sum(climb.row_blocks(lm.n_layers) * (length - climb.start) for climb in climbs) * block
    return 10 * (work + len(restorations) * 2 * lm.d_model * lm.vocab_size)


def matmul_peak(lm: LM) -> float:
    """Measure the machine's own matrix-multiply rate at the MLP's shape, FLOP/s."""
    a = torch.randn(1024, lm.d_model, device=lm.device, dtype=lm.dtype)
    b = torch.randn(lm.d_model, lm.d_mlp, device=lm.device, dtype=lm.dtype)
    best = min(timed(lm, lambda: a @ b)[0] for _ in range(10))
    return 2 * 1024 * lm.d_model * lm.d_mlp / best


def timed(lm: LM, call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Run once; seconds and result."""
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = call()
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def peak_extra(lm: LM, call: Callable[[], torch.Tensor]) -> int:
    """Bytes that a call needed beyond what was in use before it, at its worst moment."""
    if lm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # give back what earlier calls left, or it would hide what this one needs
    page, statm = resource.getpagesize(), Path("/proc/self/statm")
    resident: Callable[[], int] = lambda: int(statm.read_text().split()[1]) * page  # noqa: E731
    before, seen, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen[0] = max(seen[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(0, seen[0] - before)


def compare(lm: LM, kind: str, window: int, arguments: argparse.Namespace, peak: float) -> None:
    """Print one line: both times, the ratio, the rate, the memory, the largest difference."""
    settings = TraceSettings.of(
        sites=kind, window=window, noise=NOISE, draws="published", memory_budget=arguments.memory_budget
    )
    layers = range(0, lm.n_layers, 4 if arguments.quick else 1)

    def ours() -> torch.Tensor:
        return trace_with(lm, FACT, settings).scores[kind]

    extra = peak_extra(lm, ours)  # also warms up
    best, grid = min((timed(lm, ours) for _ in range(arguments.repeats)), key=lambda item: item[0])
    line = f"{kind:5} window {window if kind != 'state' else 1:2}: engram {best:7.2f} s"
    if not arguments.skip_loop:
        loop, theirs = timed(lm, lambda: published_loop(lm, kind, window, layers))
        loop *= lm.n_layers / len(layers)
        difference = float((theirs - grid[:, list(layers)]).abs().max())
        line += f"  loop {loop:7.2f} s  ratio {loop / best:5.1f}x  largest difference {difference:.1e}"
    rate = needed_flops(lm, kind, window) / best
    budget = parse_budget(arguments.memory_budget, lm.device)
    print(
        f"{line}  {rate / 1e9:8.0f} GFLOP/s of {peak / 1e9:.0f} ({rate / peak:.0%})  "
        f"peak extra memory {extra / 2**20:5.0f} MiB of {budget / 2**20:.0f}",
        flush=True,
    )


def main() -> None:
    """Read the options and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="time the loop on every fourth layer")
    parser.add_argument("--skip-loop", action="store_true", help="time only engram")
    parser.add_argument("--site", choices=["state", "mlp", "attn", "all"], default="all")
    parser.add_argument("--tokenizer", default=str(TOKENIZER))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory-budget", default=None)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    for shape in SHAPES if arguments.shape == "all" else [arguments.shape]:
        lm = build(shape, arguments.tokenizer, arguments.device, arguments.dtype)
        peak = matmul_peak(lm)
        print(
            f"{lm.name}: {lm.n_layers} layers, d_model {lm.d_model}, {lm.dtype}, {lm.device}, {FACT.text!r}", flush=True
        )
        for kind, window in (("state", 10), ("mlp", 10), ("attn", 10), ("mlp", 3)):
            if arguments.site in ("all", kind):
                compare(lm, kind, window, arguments, peak)


if __name__ == "__main__":
    main()
