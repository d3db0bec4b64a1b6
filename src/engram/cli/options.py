"""What the verbs about edits share: their options, and small things to say."""

import logging
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.editing import Edit
    from engram.models import LM

CACHE = "ENGRAM_CACHE"
EditFolder = Annotated[Path, typer.Argument(help="A folder that 'engram edit --out' wrote.")]
Seed = Annotated[int, typer.Option(help="For everything that is drawn at random.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask as a chat, in the tokenizer's template.")]
Method = Annotated[str, typer.Option("--method", help="How; engram methods lists them.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A setting of the method, such as steps=10; see engram methods NAME."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse an edit whose verdict is not ok (exit code 1).")]


def _use_cache(folder: Path | None) -> Path | None:
    """Let this command keep its cache in a folder; `main` takes it back."""
    if folder is not None:
        os.environ[CACHE] = str(folder)
    return folder


Corpus = Annotated[
    str | None,
    typer.Option(help="Text for key statistics: a .txt, .csv or .jsonl file, or hf:NAME; mini has its own."),
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="How many tokens of it to count; enough of them if not given."),
]
Statistics = Annotated[
    Path | None, typer.Option(help="Key statistics in a folder that 'engram stats --out' wrote, instead of a corpus.")
]
Cache = Annotated[
    Path | None,
    typer.Option(callback=_use_cache, help="Folder of the cache; $ENGRAM_CACHE or the user's cache folder otherwise."),
]


def statistics_given(
    model: str, *, corpus: str | None = None, tokens: int | None = None, statistics: Path | None = None, needed: bool
) -> dict[str, Any]:
    """Return a method's settings about key statistics, checked before the model is loaded.

    Args:
        model: the model's name or folder.
        corpus: a file, or hf:NAME.
        tokens: how many tokens to count.
        statistics: a folder of statistics.
        needed: whether there must be statistics, or text to count.

    Raises:
        SettingError: nothing was given, and the cache has nothing for such a model; or too much.
        DataError: a file cannot be read, or is empty.
    """
    from engram.stats import KeyStatistics, open_corpus
    from engram.stats.cache import default_folder, may_be_kept
    from engram.stats.finding import need_text

    if statistics is not None and (corpus is not None or tokens is not None):
        raise SettingError("Give --statistics FOLDER, or a --corpus to count (and --tokens), not both.")
    if corpus is not None and not corpus.startswith("hf:"):
        open_corpus(corpus)
    if needed and model != "mini" and corpus is None and statistics is None:
        if not may_be_kept(default_folder(), model):
            raise SettingError(need_text(model))
    found = None if statistics is None else KeyStatistics.load(statistics)
    return settings_given(corpus=corpus, tokens=tokens, covariance=found)


@contextmanager
def unlogged() -> Generator[None]:
    """Keep the library's log off the screen where the verb says the same in its own words."""
    logger = logging.getLogger("engram")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def load_edit(folder: Path, lm: "LM") -> "Edit":
    """Read an edit and check at once that it belongs to the model."""
    from engram.editing import Edit

    return Edit.load(folder, lm)


def named(edit: "Edit") -> str:
    """Say in a few words what is in an edit."""
    facts = edit.facts
    first = f"{facts[0].text} -> {facts[0].target}" if facts else "no fact"
    return first if len(facts) < 2 else f"{len(facts)} facts ({first}, ...)"


def method_settings(method: str, typed: Sequence[str] | None, **short: Any) -> dict[str, Any]:
    """Return a method's settings, from --set and from options that are short for some, before a model is loaded.

    Args:
        method: the method's name; "none" has no settings.
        typed: what followed each --set.
        **short: settings that have options of their own, where these were typed.

    Raises:
        SettingError: an unknown method or setting, a value of another type, or one that was given twice.
    """
    from engram.editing.methods import method_kind
    from engram.settings import parsed

    given = settings_given(**short)
    if method == "none" and not typed:
        return given
    found = parsed(method_kind(method), method, typed or ())
    for name in given.keys() & found:
        raise SettingError(f"{name} was given twice: by --{name.replace('_', '-')} and by --set {name}={found[name]}.")
    return {**given, **found}


def needs_keys(method: str, settings: Mapping[str, Any]) -> bool:
    """Say whether a method needs key statistics or text to count, and its settings name neither.

    Raises:
        SettingError: an unknown method.
    """
    from engram.editing.methods import method_kind
    from engram.settings import settings as settings_of

    if method == "none" or not settings.keys().isdisjoint(("covariance", "corpus")):
        return False
    return "covariance" in settings_of(method_kind(method))


def settings_given(**values: Any) -> dict[str, Any]:
    """Keep the settings that were typed; the method's own defaults stand for the others."""
    return {name: value for name, value in values.items() if value is not None and value is not False}
