"""A chat model's template: what it puts around the user's words, so that prompts are asked as a chat asks them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engram.errors import FactError, TokenizerError
from engram.facts import Case, Fact

if TYPE_CHECKING:
    from engram.models.lm import LM

_MARK = "Engram's  <prompt>"
"""Words that a template which changes case, spaces or signs does not leave as they are."""


@dataclass(frozen=True, slots=True)
class Wrap:
    """What a chat template puts around the user's words; nothing by default.

    Args:
        before: text in front of them.
        after: text behind them, up to where the model's answer begins.
        trims: whether the template drops white space around them.
    """

    before: str = ""
    after: str = ""
    trims: bool = False

    def around(self, text: str) -> str:
        """Return the words as the model sees them.

        Raises:
            FactError: the template would drop white space at their beginning or end.
        """
        if self.trims and text != text.strip():
            raise FactError(f"The chat template drops the white space around {text!r}. Leave it out of the prompt.")
        return f"{self.before}{text}{self.after}"

    def fact(self, fact: Fact) -> Fact:
        """Return the fact with its prompt in the template.

        Raises:
            FactError: as `around`.
        """
        if not self:
            return fact
        self.around(fact.text)
        return replace(fact, prompt=f"{self.before}{fact.prompt.rstrip(' ')}{self.after}")

    def case(self, case: Case) -> Case:
        """Return the case with every prompt in the template; its texts, which nobody asks, stay as they are.

        Raises:
            FactError: as `around`.
        """
        if not self:
            return case
        return replace(
            case,
            fact=self.fact(case.fact),
            paraphrases=tuple(map(self.around, case.paraphrases)),
            neighborhood=tuple(map(self.around, case.neighborhood)),
            attributes=tuple(map(self.around, case.attributes)),
            generation=tuple(map(self.around, case.generation)),
            kept=tuple(map(self.fact, case.kept)),
            locality=tuple((self.around(prompt), answer) for prompt, answer in case.locality),
        )

    def __bool__(self) -> bool:
        return bool(self.before or self.after)


def wrap_for(lm: "LM", *, chat: bool) -> Wrap:
    """Return what is put around prompts: the chat template where it is asked for, else nothing.

    Raises:
        TokenizerError: as `chat_wrap`.
    """
    return chat_wrap(lm) if chat else Wrap()


def chat_wrap(lm: "LM") -> Wrap:
    """Return what the tokenizer's chat template puts around a user's message.

    A system prompt that the template adds by itself is part of it.

    Raises:
        TokenizerError: the tokenizer has no chat template, or one that changes the message.
    """
    tokenizer: Any = lm.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(f"{lm.name} has no chat template, so it is no chat model. Leave out --chat.")
    text = _rendered(tokenizer, _MARK)
    if text.count(_MARK) != 1 or "{}" in text:
        raise TokenizerError(f"The chat template of {lm.name} does not keep the user's words as they are.")
    before, after = text.split(_MARK)
    spaced = _rendered(tokenizer, f" {_MARK}\n")
    trims = spaced == text
    if not trims and spaced != f"{before} {_MARK}\n{after}":
        raise TokenizerError(f"The chat template of {lm.name} does not keep the user's words as they are.")
    adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return Wrap(before.removeprefix(str(tokenizer.bos_token)) if adds_bos else before, after, trims)


def _rendered(tokenizer: Any, words: str) -> str:
    message = [{"role": "user", "content": words}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
