"""Verbs answer at once: help and version need none of the big libraries."""

import os
import subprocess
import sys

from test_house import HEAVY, ROOT

CODE = """
import contextlib, io, sys
from engram.cli import app, main
verbs = [c.name or c.callback.__name__ for c in app.registered_commands]
verbs += [g.name for g in app.registered_groups]
shown = io.StringIO()
for arguments in (["--help"], ["--version"], *([verb, "--help"] for verb in verbs)):
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main(arguments)
print(shown.getvalue().count("Usage:"), len(verbs) + 1)
print(*sorted(HEAVY & set(sys.modules)))
"""


def test_help_of_every_verb_imports_no_big_library() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    code = f"HEAVY = {HEAVY!r}\n{CODE}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    shown, found = ran.stdout.splitlines()
    usages, wanted = shown.split()
    assert usages == wanted, ran.stderr
    assert found == ""


def test_reading_results_imports_no_statistics_library() -> None:
    code = "import sys, engram.evaluation; print(*sorted({'sklearn', 'scipy', 'nltk', 'pandas'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert ran.stdout.strip() == "", ran.stderr
