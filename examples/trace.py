"""Where is one fact recalled, and where are many? Draws a heat map and the averages.

    python examples/trace.py

Writes into engram-examples/. ENGRAM_EXAMPLE_FACTS=20 averages over 20 facts instead of 200.
"""

import os
from pathlib import Path

from rich import print

import engram

FACTS = int(os.environ.get("ENGRAM_EXAMPLE_FACTS", "200"))
OUT = Path("engram-examples/trace")

lm = engram.load("mini")

# One fact: rows are tokens, columns are layers, dark is where one restored value brings the answer back.
fact = engram.Fact("Space Needle", "The {} is located in the city of")
trace = engram.trace(lm, fact)
print(trace)
trace.plot(path=OUT / "one-fact.png")
trace.save(OUT / "one-fact")

# Many facts: what the model does not know is left out. Interrupt it and start it again: it goes on.
known = engram.datasets.load("mini-knowns", sample=FACTS)
average = engram.trace_many(lm, known, out=OUT / "many-facts")
print(average)
average.plot(OUT / "many-facts.png")

for site in ("mlp", "attn"):
    peak = average.peak(site)
    print(f"{site}: {peak.effect:.3f} ± {peak.half_width:.3f} at the {peak.group}, layer {peak.layer}")
