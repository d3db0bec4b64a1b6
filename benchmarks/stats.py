"""How fast key statistics are counted, against a bare forward pass to the same layer.

    python benchmarks/stats.py                                   # GPT-2 small shape, random weights
    python benchmarks/stats.py --shape medium --layers 8
    python benchmarks/stats.py --shape xl --device cuda --dtype bfloat16 --tokens 500000

Both sides read the same batches of the same texts and stop at the same layer; counting adds the products k kᵀ, the
checks and the sums. They alternate, and the best of `--repeats` counts.
"""

import argparse
import random
import resource
import time
from collections.abc import Sequence

import torch
from shapes import SHAPES, TOKENIZER, build

from engram.editing.parts.published import rome_layer
from engram.models import LM, Site, record
from engram.stats import open_corpus
from engram.stats.counting import Counting, collect

WORDS = (
    "the of and a to in was is city that for it on as with were by he at from his an be this which are or had first "
    "not year also after new two their when who has time one its school war more state all world long only film song"
).split()


def texts_for(tokens: int, *, short: bool) -> list[str]:
    """Make nonsense of about so many tokens: long articles, or sentences of many lengths."""
    rng = random.Random(0)
    texts: list[str] = []
    while tokens > 0:
        length = rng.randint(8, 40) if short else 1024
        texts.append(" ".join(rng.choices(WORDS, k=length)))
        tokens -= length
    return texts


def bare(lm: LM, layers: Sequence[int], batches: Sequence[torch.Tensor]) -> float:
    """Run the model itself to the last layer needed and keep nothing but that layer's keys; return seconds."""
    begin = time.perf_counter()
    for ids in batches:
        with torch.no_grad(), record(lm, [Site("key", max(layers))], stop=True):
            lm.model(ids.to(lm.device))
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def batches_of(lm: LM, texts: list[str]) -> tuple[list[torch.Tensor], int]:
    """Make the batches that counting makes; return them and the number of tokens."""
    rows = sorted((lm.tokenizer(text)["input_ids"] for text in texts), key=len, reverse=True)
    batches: list[torch.Tensor] = []
    while rows:
        count = max(1, 4096 // len(rows[0]))
        some, rows = rows[:count], rows[count:]
        longest = len(some[0])
        batches.append(torch.tensor([row + [0] * (longest - len(row)) for row in some]))
    return batches, sum(len(lm.tokenizer(text)["input_ids"]) for text in texts)


def main() -> None:
    """Read the options and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="default: the layer that ROME edits")
    parser.add_argument("--tokens", type=int, default=32_000)
    parser.add_argument("--short", action="store_true", help="sentences instead of long articles")
    parser.add_argument("--precision", choices=["float32", "float64"], default="float32")
    parser.add_argument("--tokenizer", default=str(TOKENIZER))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    lm = build(arguments.shape, arguments.tokenizer, arguments.device, arguments.dtype)
    layers = arguments.layers or [rome_layer(lm, None)[0]]
    texts = texts_for(arguments.tokens, short=arguments.short)
    corpus, how = open_corpus(texts), Counting(tolerance=None, precision=arguments.precision)
    batches, tokens = batches_of(lm, texts)
    forward = counted = float("inf")
    for _ in range(arguments.repeats):
        forward = min(forward, bare(lm, layers, batches))
        begin = time.perf_counter()
        collect(lm, layers, corpus, how)
        if lm.device.type == "cuda":
            torch.cuda.synchronize()
        counted = min(counted, time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{lm.name}, layers {layers}, {tokens} tokens, products in {arguments.precision}")
    print(f"  bare forward pass {tokens / forward:9.0f} tokens/s")
    print(f"  counting          {tokens / counted:9.0f} tokens/s  {forward / counted:.2f} of it  peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
