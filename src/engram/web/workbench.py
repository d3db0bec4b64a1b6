"""Everything that the page asks of the model, one visitor at a time.

Edits act as side paths: hooks on modules that all visitors share. So whatever runs the model holds one lock from before
the hooks are set until after they are gone; nobody's pass can meet somebody else's edit, and no weight ever changes.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from engram.editing import METHODS, Edit, applied_rows, edit
from engram.editing.answers import Question, ask, phrase
from engram.editing.check import Check, check
from engram.editing.methods import method_kind
from engram.errors import FactError, PromptTooLong, SettingError, TokenizerError
from engram.facts import Fact
from engram.locate import CausalTrace, trace
from engram.models.chat import Wrap, wrap_for
from engram.models.generation import Generation, generate_batch
from engram.settings import settings
from engram.web.limits import Limits, bounded
from engram.web.nextwords import NextWords, next_words
from engram.web.subjects import Span, guessed
from engram.web.suggestion import Suggestion, suggested

if TYPE_CHECKING:
    from engram.models import LM

Steps = Callable[[int, int], None]
"""Called with finished and all steps."""
Told = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_NEW_TOKENS = 30
_SAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A prompt's tokens and the characters each stands for."""

    prompt: str
    texts: tuple[str, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A trace, and where an edit of its fact would go.

    Args:
        fact: the fact.
        trace: the trace.
        says: what the model says after the prompt, up to the end of the phrase.
        suggestion: the layer.
    """

    fact: Fact
    trace: CausalTrace
    says: str
    suggestion: Suggestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a visitor wants written.

    Args:
        fact: prompt, subject and target.
        method: a method's name.
        preset: one of its presets; its default when empty.
        layer: where; the method's own choice when not given.
        paraphrases: own prompts for the same fact.
        neighborhood: own prompts about other subjects.
        chat: ask within the tokenizer's chat template.
    """

    fact: Fact
    method: str = "rome"
    preset: str = ""
    layer: int | None = None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    chat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An edit and what it does: the check, and the most probable next words before and after."""

    edit: Edit
    check: Check
    before: NextWords
    after: NextWords


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What the model says to a prompt under one edit, or none.

    Args:
        name: whose voice it is.
        text: its greedy continuation.
        says: the beginning of it, up to the end of the phrase.
        words: the most probable next words.
    """

    name: str
    text: str
    says: str
    words: NextWords


class Workbench:
    """A model that many visitors share.

    Args:
        lm: the model.
        limits: bounds of what visitors may ask.
        corpus: text for the key statistics of models that have none of their own; see `engram.stats.open_corpus`.
        tokens: how many tokens of it to count.
        covariance: key statistics instead; see `engram.ROME`.
        chat: ask within the tokenizer's chat template, unless a visitor wants otherwise.

    Raises:
        TokenizerError: `chat` on a model without a chat template.
    """

    def __init__(
        self,
        lm: "LM",
        *,
        limits: Limits | None = None,
        corpus: Any = None,
        tokens: int | None = None,
        covariance: Any = None,
        chat: bool = False,
    ) -> None:
        self.lm = lm
        wrap_for(lm, chat=chat)  # refuses at once
        self.chat = chat
        self.chats = chat or _has_template(lm)
        self.limits = limits or Limits()
        self.names = _known_names(lm)
        self._statistics = {"corpus": corpus, "tokens": tokens, "covariance": covariance}
        self._lock = threading.Lock()

    # Words

    def fact(
        self,
        prompt: str | None,
        subject: str | None,
        *,
        target: str | None = None,
        occurrence: int | None = None,
    ) -> Fact:
        """Make a fact from what was typed; an empty subject is guessed.

        Raises:
            FactError: the prompt is empty, or the subject does not stand in it.
            SettingError: something is too long.
        """
        text = bounded(prompt, "prompt", self.limits.prompt_chars)
        name = bounded(subject, "subject", self.limits.phrase_chars) or guessed(text, self.names)
        goal = None if target is None else bounded(target, "target", self.limits.phrase_chars)
        if goal == "":
            raise FactError("The target is empty. Write what the model shall say after the prompt, such as 'Rome'.")
        return Fact.from_text(text, name, target=goal, occurrence=occurrence)

    def tokens(self, prompt: str | None) -> Tokens:
        """Return a prompt's tokens.

        Raises:
            PromptTooLong: more tokens than the page traces, or the model has positions.
            FactError: the prompt has no tokens.
            SettingError: too many characters.
        """
        text = bounded(prompt, "prompt", self.limits.prompt_chars)
        encoded = self.lm.encode(text)
        count = encoded.ids.shape[1]
        if count > self.limits.prompt_tokens:
            raise PromptTooLong(
                f"The prompt has {count} tokens; this page traces up to {self.limits.prompt_tokens}. Shorten it."
            )
        return Tokens(prompt=text, texts=tuple(self.lm.tokens(encoded.ids[0])), spans=encoded.offsets[0])

    # Where is it?

    def locate(self, fact: Fact, *, window: int, chat: bool = False, progress: Steps | None = None) -> Located:
        """Trace a fact at all three sites.

        Raises:
            PromptTooLong: see `tokens`.
            SettingError: a window that is not 1 to the number of layers.
        """
        self.tokens(fact.text)
        if not 1 <= window <= self.lm.n_layers:
            raise SettingError(f"The window has {window} layers; choose 1 to {self.lm.n_layers}.")
        with self._lock:
            found = trace(self.lm, fact, window=window, samples=_SAMPLES, chat=chat, progress=progress)
            says = self._present_answer(fact, chat) or ""
            advice = suggested(self.lm, found, asked=fact.text, says=says, names=self.names)
            return Located(fact=fact, trace=found, says=says, suggestion=advice)

    # Make it so

    def presets(self, method: str) -> tuple[str, ...]:
        """Return the names of a method's presets, its default first."""
        preset = settings(method_kind(method)).get("preset") if method in METHODS else None
        if preset is None:
            return ()
        names = [str(name) for part in get_args(preset.type) for name in get_args(part)]
        return (str(preset.default), *(name for name in names if name != preset.default))

    def make(self, wish: Wish, *, progress: Told | None = None) -> Made:
        """Make an edit and look at it: before and after.

        Raises:
            EngramError: whatever the method and the check refuse; the sentence says what to do.
        """
        self.tokens(wish.fact.text)
        told = progress or _silent
        with self._lock:
            fact = wish.fact
            if fact.original is None:
                fact = Fact(fact.subject, fact.prompt, fact.target, self._present_answer(fact, wish.chat))
            made = edit(self.lm, fact, wish.method, progress=progress, **self._settings(wish))
            told("looking at the edit", 0, 1)
            seen = check(
                self.lm,
                made,
                paraphrases=wish.paraphrases,
                neighborhood=wish.neighborhood,
                max_new_tokens=_NEW_TOKENS,
                progress=told,
            )
            told("looking at the next word", 0, 1)
            before, after = next_words(self.lm, self._wrap(wish.chat).around(fact.text), [None, made])
            return Made(edit=made, check=seen, before=before, after=after)

    def _present_answer(self, fact: Fact, chat: bool) -> str | None:
        return ask(self.lm, [Question(text=self._wrap(chat).around(fact.text))])[0].says or None

    def _wrap(self, chat: bool) -> Wrap:
        return wrap_for(self.lm, chat=chat)

    def _settings(self, wish: Wish) -> dict[str, Any]:
        known = settings(method_kind(wish.method)) if wish.method in METHODS else {}
        given: dict[str, Any] = {}
        if wish.preset:
            given["preset"] = wish.preset
        if wish.layer is not None:
            given["layer"] = wish.layer
        if wish.chat and "chat" in known:
            given["chat"] = True
        given |= {name: value for name, value in self._statistics.items() if value is not None and name in known}
        return given

    # Side by side

    def compare(self, prompt: str | None, edits: Mapping[str, Edit | None], *, chat: bool = False) -> tuple[Voice, ...]:
        """Return what the model says to a prompt under each edit (`None`: unedited), in one batch.

        Raises:
            FactError: the prompt is empty.
            PromptTooLong: see `tokens`.
            EditMismatch: an edit was made for another model.
        """
        text = self._wrap(chat).around(self.tokens(prompt).prompt)
        names = list(edits)
        rows = [text] * len(names)
        under = [edits[name] for name in names]
        with self._lock:
            words = next_words(self.lm, text, under)
            with applied_rows(self.lm, under):
                texts = generate_batch(self.lm, rows, Generation(max_new_tokens=self._room(text)))
        return tuple(
            Voice(name=name, text=whole[len(text) :], says=phrase(whole[len(text) :]), words=each)
            for name, whole, each in zip(names, texts, words, strict=True)
        )

    def _room(self, prompt: str) -> int:
        """Return how many tokens may follow a prompt."""
        most = self.lm.max_positions
        left = _NEW_TOKENS if most is None else most - self.lm.encode(prompt).ids.shape[1]
        return max(1, min(_NEW_TOKENS, left))

    def require_fit(self, made: Edit) -> None:
        """Check that an edit belongs to the model, while nobody else uses it."""
        with self._lock:
            made.require_fit(self.lm)


def _known_names(lm: "LM") -> Sequence[str]:
    """Return the names that the built-in model was told about."""
    if lm.name != "mini":
        return ()
    from engram.mini.world import load_world

    return tuple(entity.name for entity in load_world().entities)


def _has_template(lm: "LM") -> bool:
    """Say whether a model has a chat template that can be used."""
    try:
        return bool(wrap_for(lm, chat=True))
    except TokenizerError:
        return False


def _silent(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""
