"""Where do healthy edits end? Measures edits of `mini` that are known to be good and edits that really do damage.

Damage is told by something that the guard does not look at: the share of several hundred facts about other subjects
that the model still answers. The thresholds of `engram.editing.Thresholds` lie between what harmless edits reach and
what harmful ones do; the table is in docs/check-and-guard.md.

    python benchmarks/guard.py --facts 12 --out guard.json
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import engram
from engram.editing import FT, FTL, ROME, Edit, Thresholds
from engram.editing.guard import guard
from engram.facts import Fact
from engram.mini.records import counterfact_records, known_facts
from engram.models import LM
from engram.models.continuations import continuation_ids
from engram.stats import KeyStatistics

HARMLESS = 0.98
"""An edit that leaves this share of the known facts about other subjects does no damage; below 0.9 it does."""
HARMFUL = 0.90


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One edit: what the guard saw, and how much of what the model knew is left."""

    kind: str
    facts: int
    norm: float
    perplexity: float
    repetition: float
    missed: int
    left: float


def kinds(lm: LM) -> dict[str, Callable[[Sequence[Fact]], Edit]]:
    """Ways to make an edit, by name; the last ones are meant to do harm."""
    layer = ROME()(lm, [Fact("Space Needle", "{} is located in the city of", "Rome")]).records[0].layers[0]
    identity = KeyStatistics.of(lm, {layer: torch.eye(lm.d_mlp)})

    def rome(**settings: object) -> Callable[[Sequence[Fact]], Edit]:
        return lambda facts: engram.edit(lm, facts, ROME(**settings))  # type: ignore[arg-type]

    return {
        "rome rrome": rome(),
        "rome code": rome(preset="code"),
        "rome, layer below": rome(layer=max(0, layer - 1)),
        "rome, layer above": rome(layer=layer + 1),
        "ft": lambda facts: engram.edit(lm, facts, FT()),
        "ft-l": lambda facts: engram.edit(lm, facts, FTL()),
        "rome x 3": lambda facts: 3 * rome()(facts),
        "rome x 8": lambda facts: 8 * rome()(facts),
        "rome x 20": lambda facts: 20 * rome()(facts),
        "rome, identity covariance": rome(covariance=identity),
        "rome, identity covariance x 5": lambda facts: 5 * rome(covariance=identity)(facts),
        "ft, rate 1e-2": lambda facts: engram.edit(lm, facts, FT(lr=1e-2)),
        "ft, rate 1e-1": lambda facts: engram.edit(lm, facts, FT(lr=1e-1)),
        "ft, rate 1": lambda facts: engram.edit(lm, facts, FT(lr=1.0)),
    }


def share_answered(lm: LM, prompts: Sequence[str], answers: Sequence[int]) -> float:
    """Return the share of prompts whose answer's first token is the model's most probable one."""
    right = 0
    for begin in range(0, len(prompts), 64):
        encoded = lm.encode(list(prompts[begin : begin + 64]), padding_side="left")
        with torch.no_grad():
            best = lm.forward(encoded.ids, mask=encoded.mask, keep=1)[:, -1].argmax(-1).tolist()
        right += sum(a == b for a, b in zip(best, answers[begin : begin + 64], strict=True))
    return right / len(prompts)


def measure(lm: LM, kind: str, edit: Edit, known: Sequence[dict[str, str]]) -> Measured:
    """Look at one edit with the guard and with the known facts about other subjects."""
    subjects = {fact.subject for fact in edit.facts}
    others = [fact for fact in known if fact["subject"] not in subjects]
    prompts = [fact["prompt"] for fact in others]
    ids = [continuation_ids(lm, fact["prompt"], fact["attribute"])[0] for fact in others]
    before = share_answered(lm, prompts, ids)
    with edit.applied(lm):
        after = share_answered(lm, prompts, ids)
    health = guard(lm, edit)
    return Measured(
        kind=kind,
        facts=len(edit.facts),
        norm=health.largest_norm,
        perplexity=health.perplexity[1] / health.perplexity[0],
        repetition=health.repetition[1] - health.repetition[0],
        missed=len(health.missed),
        left=after / before,
    )


def table(rows: Sequence[Measured]) -> str:
    """Return one line per kind of edit: median and largest of every figure."""
    lines = [
        "| edit | edits | facts left | change / weight | perplexity ratio | repetition rise | target missed |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row.kind for row in rows):
        some = [row for row in rows if row.kind == kind]
        cells = [f"{100 * statistics.median(r.left for r in some):.0f} % ({100 * min(r.left for r in some):.0f})"]
        for name in ("norm", "perplexity", "repetition"):
            values = [getattr(row, name) for row in some]
            cells.append(f"{statistics.median(values):.3g} ({max(values):.3g})")
        cells.append(f"{sum(row.missed for row in some)} of {sum(row.facts for row in some)}")
        lines.append(f"| {kind} | {len(some)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(rows: Sequence[Measured], limits: Thresholds) -> str:
    """Say how many harmless edits the thresholds warn about, and how many harmful ones they let through."""
    good = [row for row in rows if row.left >= HARMLESS]
    bad = [row for row in rows if row.left < HARMFUL]
    lines: list[str] = []
    for name, limit in (
        ("norm", limits.relative_norm),
        ("perplexity", limits.perplexity_ratio),
        ("repetition", limits.repetition),
    ):
        alarms = sum(not getattr(row, name) <= limit for row in good)
        seen = sum(not getattr(row, name) <= limit for row in bad)
        lines.append(
            f"{name} above {limit:g}: {alarms} of {len(good)} harmless edits, {seen} of {len(bad)} harmful ones"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=12, help="edits of each kind")
    parser.add_argument("--known", type=int, default=300, help="facts that tell how much is left")
    parser.add_argument("--out", type=Path, help="where to keep the figures")
    given = parser.parse_args()
    lm = engram.load("mini")
    records = [record["requested_rewrite"] for record in counterfact_records(count=given.facts)]
    facts = [Fact(r["subject"], r["prompt"], r["target_new"]["str"], r["target_true"]["str"]) for r in records]
    known = known_facts(count=given.known)
    rows: list[Measured] = []
    for kind, make in kinds(lm).items():
        rows += [measure(lm, kind, make([fact]), known) for fact in facts]
    rows.append(measure(lm, f"rome, {len(facts)} facts in one edit", engram.edit(lm, facts, ROME()), known))
    print(f"{lm.name} ({lm.fingerprint}), {len(facts)} facts, {len(known)} known facts; median (worst)\n")
    print(table(rows))
    print(f"\n{verdicts(rows, Thresholds())}")
    if given.out is not None:
        given.out.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
