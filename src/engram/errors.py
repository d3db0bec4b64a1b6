"""Every error that Engram raises on purpose, in one tree.

    EngramError                    catch this one to catch them all; the command line turns it into exit code 2
    ├── SettingError               an option has a value that is not allowed ("did you mean ...")
    ├── ModelError                 a model or its tokenizer cannot be used
    │   ├── ModelNotFound          no model under that name or in that folder, or no network to fetch it
    │   ├── UnsupportedModel       mixture of experts, encoder-decoder, a structure that was not recognised
    │   ├── TokenizerError         the tokenizer does not report character offsets
    │   └── LayerNeverRan          a recorded or patched site was not reached by the forward pass
    ├── FactError                  a fact, prompt or target cannot be used as given
    │   ├── TemplateError          a prompt template without, or with more than one, `{}`
    │   ├── SubjectNotFound        the subject is not in the prompt
    │   └── PromptTooLong          more tokens than the model has positions
    ├── DataError                  a data file is broken (file and line named)
    ├── NumericalError             NaN or infinity appeared (the step or layer is named)
    ├── EditError                  an edit cannot be made, saved, loaded or exported
    │   ├── EditMismatch           an edit and a model do not belong together, or weights changed meanwhile
    │   └── EditRefused            the health guard refused an edit in strict mode
    └── RunError                   a run folder cannot be used (other settings, in use by another process)

Messages say what was seen, what is allowed, and what to type next.
"""

import difflib
from collections.abc import Iterable


class EngramError(Exception):
    """Base of every error that Engram raises on purpose."""


class SettingError(EngramError):
    """An option has a value that is not allowed."""


class ModelError(EngramError):
    """A model or its tokenizer cannot be used."""


class ModelNotFound(ModelError):
    """No model under that name or in that folder, or no network to fetch it."""


class UnsupportedModel(ModelError):
    """The model's structure is outside what Engram understands."""


class TokenizerError(ModelError):
    """The tokenizer does not report character offsets."""


class LayerNeverRan(ModelError):
    """A recorded or patched site was not reached by the forward pass."""


class FactError(EngramError):
    """A fact, prompt or target cannot be used as given."""


class TemplateError(FactError):
    """A prompt template does not contain exactly one `{}`."""


class SubjectNotFound(FactError):
    """The subject is not in the prompt."""


class PromptTooLong(FactError):
    """More tokens than the model has positions."""


class DataError(EngramError):
    """A data file is broken; the message names the file and the line."""


class NumericalError(EngramError):
    """NaN or infinity appeared; the message names the step or layer."""


class EditError(EngramError):
    """An edit cannot be made, saved, loaded or exported."""


class EditMismatch(EditError):
    """An edit and a model do not belong together, or the weights changed meanwhile."""


class EditRefused(EditError):
    """The health guard refused an edit in strict mode."""


class RunError(EngramError):
    """A run folder cannot be used."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return the tail of a message for an unknown name: the closest allowed one, then all of them.

    >>> did_you_mean("rom", ["rome", "ft"])
    "Did you mean 'rome'? Available: ft, rome."
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Available: {', '.join(names)}."


def needs_extra(what: str, extra: str) -> SettingError:
    """Return the error for a library that comes with an extra and is not installed: what needs it, and what to type.

    >>> str(needs_extra("A table for pandas", "pandas"))
    "A table for pandas needs the extra 'pandas'. In Engram's folder type: pip install '.[pandas]'"
    """
    return SettingError(f"{what} needs the extra {extra!r}. In Engram's folder type: pip install '.[{extra}]'")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
