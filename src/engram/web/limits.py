"""What the page takes from a visitor, and the sentences for what is too much."""

from dataclasses import dataclass

from engram.errors import FactError, SettingError

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of everything that comes from a visitor or is kept for one.

    Args:
        prompt_chars: characters of a prompt.
        prompt_tokens: tokens of a prompt that is traced; a trace's work grows with their square.
        phrase_chars: characters of a subject or a target.
        lines: own paraphrases, and as many own neighbors.
        edits: edits in one visitor's ledger.
        ledger_bytes: of the numbers of one visitor's edits.
        upload_bytes: of an uploaded zip.
        unpacked_bytes: of what an uploaded zip contains.
        waiting: requests that may wait; further ones are told that the page is busy.
        visitors: visits whose edits are kept; the one that was idle longest is forgotten first.
        idle_seconds: after which a visit's edits are forgotten.
    """

    prompt_chars: int = 400
    prompt_tokens: int = 64
    phrase_chars: int = 80
    lines: int = 8
    edits: int = 12
    ledger_bytes: int = 512 * MIB
    upload_bytes: int = 64 * MIB
    unpacked_bytes: int = 128 * MIB
    waiting: int = 32
    visitors: int = 100
    idle_seconds: int = 4 * 3600


def bounded(text: str | None, what: str, limit: int) -> str:
    """Return a text without white space around it.

    Args:
        text: what was typed.
        what: its name in the sentence, such as "prompt".
        limit: the most characters that are allowed.

    Raises:
        SettingError: it is longer.
        FactError: it holds half a character (a lone surrogate), which no tokenizer reads.
    """
    clean = (text or "").strip()
    if len(clean) > limit:
        raise SettingError(f"The {what} has {len(clean)} characters; this page takes up to {limit}. Shorten it.")
    try:
        clean.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FactError(f"The {what} contains a broken character at place {error.start + 1}. Type it again.") from error
    return clean


def bounded_lines(text: str | None, what: str, limits: Limits) -> tuple[str, ...]:
    """Return the lines of a text that are not empty.

    Raises:
        SettingError: too many lines, or one that is too long.
        FactError: see `bounded`.
    """
    lines = [line for line in (text or "").splitlines() if line.strip()]
    if len(lines) > limits.lines:
        raise SettingError(f"{len(lines)} {what}; this page takes up to {limits.lines}. Leave some out.")
    return tuple(bounded(line, what, limits.prompt_chars) for line in lines)
