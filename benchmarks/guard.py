"""Does the verdict of `check` see bad edits? Measured against CounterFact's own prompts, on edits of many sorts.

For every model about fifty records are edited in sixteen ways (`guardcases.py`), good and bad. The truth about an edit
is what the record's own neighborhood and paraphrase prompts say: it is bad when NS falls by more than 20 points, when
PS stays under 50, or when the edit fails. The check sees none of these prompts: it is given the edit and nothing else.
Half of the records choose thresholds, the other half shows what they are worth.

    python benchmarks/guard.py --models mini PATH PATH --data counterfact.json --text corpus.csv --out guard/

Everything is kept in the folder: a run that ends goes on where it was, and `--table` only reads.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import guardrule
from guardcases import bad, made, records

import engram
from engram.editing import Edit
from engram.editing.check import Check, check
from engram.models import LM


def features(found: Check) -> dict[str, Any]:
    """Return what a check saw as plain numbers: all that a rule could use."""
    answers = [
        {
            "kind": c.kind,
            "text": c.shown,
            "ok": c.ok,
            "said": [c.before.says, c.after.says],
            "sure": [c.before.probability, c.after.probability],
            "old": [c.before.original, c.after.original],
            "lead": [c.before.lead, c.after.lead],
            "gain": c.gain,
            "same": c.after.says == c.before.says,
            "says": bool(c.target) and c.after.gives(c.target or ""),
        }
        for fact in found.facts
        for c in fact.answers
    ]
    health = found.health
    return {"answers": answers, "fluency": None if health is None else {"ok": health.ok, **asdict(health)}}


def looked_at(lm: LM, edit: Edit, path: Path, *, fluency: bool = True) -> dict[str, Any]:
    """Return what a check says about an edit, from its file where it is there already."""
    if not path.is_file():
        path.write_text(json.dumps(features(check(lm, edit, texts=False, health=fluency))), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def measured(name: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per edit of a model: the truth and what the check saw."""
    lm = engram.load(name)
    folder = given.out / Path(name).name
    cases = records(lm, given.data, given.first, given.edits)
    for case, edit, truth in made(lm, cases, folder, corpus=given.text, tokens=given.tokens):
        seen = looked_at(lm, edit, folder / f"{case.id}.check.json", fluency=not given.no_fluency)
        yield {"model": Path(name).name, **truth, "bad": bad(truth), **seen}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Return all rows that were measured already."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/*.check.json")):
        truth = json.loads(path.with_name(path.name.removesuffix(".check.json") + ".json").read_text(encoding="utf-8"))
        seen = json.loads(path.read_text(encoding="utf-8"))
        rows.append({"model": path.parent.name, **truth, "bad": bad(truth), **seen})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Make edits, look at them, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mini"], help="names or folders")
    parser.add_argument("--data", default="mini", help="CounterFact records, for models other than mini")
    parser.add_argument("--first", type=int, default=0, help="the first record to use")
    parser.add_argument("--edits", type=int, default=48, help="edits per model")
    parser.add_argument("--text", help="text for ROME's key statistics, for models other than mini")
    parser.add_argument("--tokens", type=int, default=40960, help="how much of it")
    parser.add_argument("--out", type=Path, default=Path("guard"), help="folder that keeps everything")
    parser.add_argument("--no-fluency", action="store_true", help="leave fluency out: half of a check's time")
    parser.add_argument("--table", action="store_true", help="only print what was measured already")
    given = parser.parse_args(argv)
    if not given.table:
        for name in given.models:
            for number, row in enumerate(measured(name, given), start=1):
                print(f"{row['model']} {number}: {row['way']}: {'bad' if row['bad'] else 'good'}", flush=True)
    print(guardrule.report(rows_in(given.out)))


if __name__ == "__main__":
    main()
