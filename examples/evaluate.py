"""Was the change real? ROME and fine-tuning on the same cases, with intervals, and the difference between them.

    python examples/evaluate.py

Writes into engram-examples/. ENGRAM_EXAMPLE_FACTS=20 takes 20 cases instead of 100. Start it again after an
interruption: finished cases are kept.
"""

import os
from pathlib import Path

import engram
from engram.editing import FT, ROME

CASES = int(os.environ.get("ENGRAM_EXAMPLE_FACTS", "100"))
OUT = Path("engram-examples/evaluate")
COLUMNS = ["S", "ES", "PS", "NS", "kept"]

lm = engram.load("mini")
cases = engram.datasets.load("mini", sample=CASES)

# Fine-tuning's published layer and rate belong to GPT-2 XL; these serve it best on mini (docs/results.md).
methods = {"rome": ROME(), "ft": FT(layer=0, lr=5e-3)}
for name, method in methods.items():
    engram.evaluate(lm, cases, method=method, out=OUT / name, generate=False)

# The unedited model is scored once, in a folder beside the runs, and shared by them.
report = engram.Report.read(sorted(OUT.iterdir()))
print(report.markdown(COLUMNS))

print("rome minus ft, over the same cases:")
for key, difference in report.paired("ft", "rome").items():
    if key in COLUMNS:
        print(f"  {key}: {difference}")

print("hardest for ROME:")
for record in report.run("rome").worst("S", 3):
    print(f"  {record['id']}: {record['metrics']}")
