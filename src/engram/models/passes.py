"""What is known of the forward pass under way, read from the call of the model itself.

A change that chooses (a codebook, a router) must know where a row's prompt ends, which positions are padding, and
whether the prompt is being read or continued. All of that stands in the arguments with which the model is called, so
it is the same in `lm.generate`, in transformers' `model.generate` and in a pipeline. A choice is made once, while the
prompt is read, and belongs to the text: to the keys and values that were kept of it.
"""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.errors import EditError
from engram.showing import Shown

Front = Callable[[Sequence[list[int]]], list[list[int]]]
"""Given the tokens of every row's prompt, return the tokens that are put in front of each."""


@dataclass(slots=True, eq=False, repr=False)
class Text(Shown):
    """One batch of texts that are read and continued, and what was found while their prompts were read.

    Args:
        ends: index of every row's last prompt token, over all positions; None before the prompt is read.
        choices: what was chosen for each row, by who chose.
        front: tokens put in front of every row, and 1 where they are real.
    """

    ends: Int[Tensor, " row"] | None = None
    choices: dict[object, Tensor] = field(default_factory=dict[object, Tensor])
    front: tuple[Tensor, Tensor] | None = None

    def until(self, position: int) -> "Text | None":
        """Return what is known of the positions before one; nothing where the prompts do not end before it."""
        return self if self.ends is not None and int(self.ends.max()) < position else None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pass(Shown):
    """The forward pass under way, as one change sees it.

    Args:
        text: the texts that are read or continued.
        real: which of the positions that run now are tokens, not padding.
        start: index of the first of them; what is before was kept from earlier passes.
        fresh: whether the prompts are read now, not continued.
        ends: index of each row's last prompt token, counted over all positions; None where they were read unseen.
        by: whose choices these are.
    """

    text: Text
    real: Bool[Tensor, "row pos"]
    start: int
    fresh: bool
    ends: Int[Tensor, " row"] | None
    by: object = None

    @property
    def prompt_end(self) -> Int[Tensor, " row"]:
        """Index of each row's last prompt token, counted over all positions.

        Raises:
            EditError: the prompt was read before the change acted.
        """
        if self.ends is None:
            raise EditError(
                "This edit chooses while the prompt is read, and what is continued here was read without it. Read the "
                "prompt again inside the `with` block (do not hand over past_key_values from outside)."
            )
        return self.ends

    @property
    def index(self) -> Int[Tensor, " pos"]:
        """Index of every position that runs now, counted over all positions."""
        return torch.arange(self.start, self.start + self.real.shape[1], device=self.real.device)

    @property
    def prompt(self) -> Bool[Tensor, "row pos"]:
        """Which of the positions that run now belong to the prompt, padding left out."""
        return self.real & (self.index <= self.prompt_end[:, None])

    @property
    def last(self) -> Bool[Tensor, "row pos"]:
        """Which of the positions that run now is the prompt's last token."""
        return self.index == self.prompt_end[:, None]

    def at_prompt_end(self, states: Float[Tensor, "row pos width"]) -> Float[Tensor, "row width"]:
        """Return what stands at each row's last prompt token, while prompts are read."""
        rows = torch.arange(len(states), device=states.device)
        return states[rows, (self.prompt_end - self.start).to(states.device)]

    def over_prompt(self, states: Float[Tensor, "row pos width"]) -> Float[Tensor, "row width"]:
        """Return the mean over each row's prompt tokens, while prompts are read; padding is no part of it."""
        here = self.prompt.to(states.device)[..., None]
        return states.float().masked_fill(~here, 0).sum(1) / here.sum(1)

    def chosen(self, choose: Callable[[], Tensor], name: str = "") -> Tensor:
        """Return what was chosen for each row: chosen now while prompts are read, the same afterwards.

        Args:
            choose: finds it from what is seen now, [row ...].
            name: which choice, where a change makes several.

        Raises:
            EditError: the prompt was read before the change acted, or with other rows.
        """
        if self.fresh:
            self.text.choices[self.by, name] = choose().detach()
        held, rows = self.text.choices.get((self.by, name)), self.real.shape[0]
        if held is None:
            raise EditError(
                "This edit chooses while the prompt is read, and what is continued here was read without it. Read the "
                "prompt again inside the `with` block (do not hand over past_key_values from outside)."
            )
        if rows % len(held):
            raise EditError(f"{rows} row(s) continue a text of which {len(held)} row(s) were read.")
        return held.repeat(rows // len(held), *[1] * (held.ndim - 1))

    def seen_by(self, by: object, rows: Sequence[int] | None = None) -> "Pass":
        """Return the pass as a change sees it that acts on some rows."""
        if rows is None:
            return replace(self, by=by)
        of = torch.tensor(rows, device=self.real.device)
        return replace(self, by=by, real=self.real[of], ends=None if self.ends is None else self.ends[of])


@dataclass(slots=True)
class _Call:
    """A call of the model that is under way."""

    text: Text
    real: Tensor
    start: int
    fresh: bool
    width: int  # positions that the caller knows of
    sliced: bool = True  # logits of all positions, or of the last ones, are returned


class Passes:
    """Looks at the calls of a model while somebody wants to know.

    Args:
        model: the model whose calls are looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._users = 0
        self._hooks = ExitStack()
        self._fronts: list[Front] = []
        self._texts: WeakKeyDictionary[Any, Text] = WeakKeyDictionary()
        self._here: Any = None  # what this thread runs; made when somebody looks, since it cannot be copied

    def __reduce__(self) -> tuple[type["Passes"], tuple[nn.Module]]:
        """Go to another process without what is known of this one's passes."""
        return Passes, (self._model,)

    @contextmanager
    def watched(self, front: Front | None = None) -> Generator[None]:
        """Look at calls during the `with` block, and put tokens in front of prompts where `front` gives some."""
        if self._users == 0:
            self._here = local()
            parameters = tuple(inspect.signature(self._model.forward).parameters)
            before, after = self._hook(parameters), self._after
            self._hooks.callback(self._model.register_forward_pre_hook(before, with_kwargs=True).remove)
            self._hooks.callback(self._model.register_forward_hook(after, always_call=True).remove)
            self._hooks.enter_context(_called_through(self._model, "generate", self.continued))
        self._users += 1
        if front is not None:
            self._fronts.append(front)
        try:
            yield
        finally:
            self._users -= 1
            if front is not None:
                self._fronts.remove(front)
            if self._users == 0:
                self._hooks.close()
                self._texts.clear()

    @contextmanager
    def continued(self) -> Generator[None]:
        """Let all passes of the `with` block be one batch of texts, which the first one reads.

        For a loop that runs whole texts again and again because nothing of them is kept.
        """
        if self._users == 0:
            yield
            return
        outer = getattr(self._here, "text", None)
        self._here.text = Text()
        try:
            yield
        finally:
            self._here.text = outer

    @contextmanager
    def ending(self, ends: Int[Tensor, " row"]) -> Generator[None]:
        """Let the texts of the `with` block, each read whole in one pass, have prompts that end where it is said.

        Args:
            ends: index of every row's last prompt token; without this it is the row's last token.
        """
        if self._users == 0:
            yield
            return
        outer = getattr(self._here, "ends", None)
        self._here.ends = ends
        try:
            yield
        finally:
            self._here.ends = outer

    def now(self, states: Tensor) -> Pass:
        """Return the pass under way, for states [row pos width] that it has come to.

        Raises:
            EditError: the model itself is not being called, only a part of it.
        """
        call: _Call | None = getattr(self._here, "call", None)
        if call is None:
            raise EditError(
                "Only a part of the model was called, so where the prompt ends is unknown. Call the model itself "
                "(lm.forward, lm.generate, lm.model(...)) under this edit."
            )
        rows, width = states.shape[:2]
        times = rows // call.real.shape[0]  # rows may have joined on the way, and only the last position go on
        real, ends = call.real[:, -width:].repeat(times, 1), call.text.ends
        return Pass(
            text=call.text,
            real=real,
            start=call.start + call.real.shape[1] - width,
            fresh=call.fresh,
            ends=None if ends is None else ends.repeat(times) if len(ends) < rows else ends,
        )

    def text_of(self, cache: Any) -> Text | None:
        """Return what is known of the texts whose keys and values a cache keeps."""
        return getattr(cache, "text", None) or self._texts.get(cache)

    def _hook(self, parameters: tuple[str, ...]) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            self._here.call = call = self._read(given)
            return ((), given) if self._fronts and call.text.front is not None else None

        return before

    def _read(self, given: dict[str, Any]) -> _Call:
        """Find out what a call is about; tokens that are put in front go into its arguments."""
        cache = next((given[k] for k in ("past_key_values", "cache") if given.get(k) is not None), None)
        start = 0 if cache is None else int(cache.get_seq_length())
        under_way: Text | None = getattr(self._here, "text", None)
        fresh = start == 0 and (under_way is None or under_way.ends is None)
        text = under_way if under_way is not None and start == 0 else None if fresh else self.text_of(cache)
        text = Text() if text is None else text
        if cache is not None and getattr(cache, "text", None) is None:
            self._texts[cache] = text
        first = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
        width, told = first.shape[1], getattr(self._here, "ends", None) if fresh else None
        if self._fronts:
            _put_in_front(given, text, self._fronts, fresh=fresh, start=start, ends=told)
        rows, run = (given["input_ids"] if given.get("input_ids") is not None else first).shape[:2]
        real = _real(given.get("attention_mask"), rows, run, first.device)
        if fresh:
            last = (torch.arange(run, device=real.device) * real).amax(1)
            text.ends = last if told is None else told.to(real.device) + run - width
        return _Call(text, real, start, fresh, width, not isinstance(given.get("logits_to_keep"), Tensor))

    def _after(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        call: _Call | None = getattr(self._here, "call", None)
        self._here.call = None
        if call is None or output is None:
            return None
        cache = getattr(output, "past_key_values", None)
        if cache is not None and self.text_of(cache) is None:
            self._texts[cache] = call.text
        if call.text.front is not None and call.sliced:
            output.logits = output.logits[:, -call.width :]
        return output


def _real(mask: Any, rows: int, width: int, device: torch.device) -> Tensor:
    if mask is None:
        return torch.ones(rows, width, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise EditError(
            "The model was called with a ready-made attention mask (a static cache does so), from which padding cannot "
            "be read. Call it with a mask of [row, position], or generate with the usual cache."
        )
    return mask[:, -width:].bool()


def _put_in_front(
    given: dict[str, Any], text: Text, fronts: Sequence[Front], *, fresh: bool, start: int, ends: Tensor | None
) -> None:
    """Put tokens in front of the prompts, and let the mask of later passes know of them."""
    ids = given.get("input_ids")
    if ids is None or given.get("labels") is not None:
        raise EditError(
            "This edit puts tokens in front of the prompt, so the model must be called with token ids (not with "
            "embeddings, from its middle, or with labels)."
        )
    mask = given.get("attention_mask")
    mask = (
        torch.ones(len(ids), start - _columns(text) + ids.shape[1], device=ids.device).long() if mask is None else mask
    )
    if fresh:
        stops = [None] * len(ids) if ends is None else (ends + 1).tolist()
        rows = [row[:stop][keep[:stop].bool()].tolist() for row, keep, stop in zip(ids, mask, stops, strict=True)]
        text.front = _padded([sum(parts, []) for parts in zip(*(front(rows) for front in fronts), strict=True)], ids)
    if text.front is None:
        raise EditError("This edit puts tokens in front of the prompt, and what is continued here was read without it.")
    tokens, real = text.front
    if start == 0:
        given["input_ids"] = torch.cat([tokens, ids], dim=1)
    given["attention_mask"] = whole = torch.cat([real, mask], dim=1)
    if given.get("position_ids") is not None:
        given["position_ids"] = (whole.cumsum(1) - 1).clamp_min(0)[:, -given["input_ids"].shape[1] :]
    if isinstance(given.get("logits_to_keep"), Tensor) and start == 0:
        given["logits_to_keep"] = given["logits_to_keep"] + tokens.shape[1]


def _columns(text: Text) -> int:
    return 0 if text.front is None else text.front[0].shape[1]


def _padded(rows: Sequence[list[int]], like: Tensor) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    tokens = [[row[0] if row else 0] * (width - len(row)) + row for row in rows]
    real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens, device=like.device).long().view(len(rows), width), torch.tensor(
        real, device=like.device
    ).long().view(len(rows), width)


@contextmanager
def _called_through(model: Any, name: str, around: Callable[[], Any]) -> Generator[None]:
    """Let a method of a model run inside a context during the `with` block."""
    method = getattr(model, name, None)
    had = name in model.__dict__
    if method is None:
        yield
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        with around():
            return method(*args, **kwargs)

    model.__dict__[name] = call
    try:
        yield
    finally:
        if had:
            model.__dict__[name] = method
        else:
            del model.__dict__[name]
