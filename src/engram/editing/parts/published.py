"""Where to edit, and how far: what was typed, what was tuned, what was published, what a config names, or a rule.

`chosen` asks these in this order, number by number, and says where each came from. `TUNABLE` names for every method
the one or two numbers that matter most, and the values that `engram tune` tries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engram.editing.tuned import tuned
from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.models import LM

Known = tuple[str, int]
"""`config.model_type` and number of layers: what tells GPT-2 XL from GPT-2 Medium."""

Numbers = Mapping[str, int | float]
"""Settings by name."""

MEDIUM, LARGE, XL = ("gpt2", 24), ("gpt2", 36), ("gpt2", 48)
GPTJ, NEOX, LLAMA = ("gptj", 28), ("gpt_neox", 44), ("llama", 32)

PUBLISHED_CLAMP, NORMED_CLAMP = 4.0, 1.0

PUBLISHED: Mapping[str, Mapping[Known, Numbers]] = {
    "rome": {
        MEDIUM: {"layer": 8, "clamp": 3.0},
        LARGE: {"layer": 12, "clamp": PUBLISHED_CLAMP},
        XL: {"layer": 17, "clamp": PUBLISHED_CLAMP},
        GPTJ: {"layer": 5, "clamp": PUBLISHED_CLAMP},
        NEOX: {"layer": 15, "clamp": PUBLISHED_CLAMP},
        LLAMA: {"layer": 1},
    },
    "ft": {XL: {"layer": 1}, GPTJ: {"layer": 21}},
    "ft-l": {
        MEDIUM: {"layer": 0, "bound": 2e-3},
        LARGE: {"layer": 0, "bound": 1e-3},
        XL: {"layer": 0, "bound": 5e-4},
        GPTJ: {"layer": 0, "bound": 5e-5},
    },
}
"""PROTOCOL §3 and §6; Llama-2-7B and Llama-3-8B: layer 1 is best for single edits (2405.00664)."""

CONFIG_PREFIX: Mapping[str, str] = {"rome": "engram_edit_", "ft": "engram_ft_", "ft-l": "engram_ft_l_"}
"""How a model's config names a method's numbers, such as `engram_edit_layer` and `engram_edit_clamp`."""

PUBLISHED_RATE = 5e-4
UNTUNED_BOUND = 5e-4


def _rome_rule(lm: "LM") -> Numbers:
    """Low down, where edits keep neighbors; where a norm follows the projection, a value's length means little."""
    clamp = PUBLISHED_CLAMP if lm.adds_mlp_to_state else NORMED_CLAMP
    return {"layer": min(max(1, lm.n_layers // 10), lm.n_layers - 1), "clamp": clamp}


def _ft_rule(lm: "LM") -> Numbers:
    return {"layer": min(1, lm.n_layers - 1), "lr": PUBLISHED_RATE}


def _ftl_rule(lm: "LM") -> Numbers:
    return {"layer": 0, "lr": PUBLISHED_RATE, "bound": UNTUNED_BOUND}


RULES: Mapping[str, "Callable[[LM], Numbers]"] = {"rome": _rome_rule, "ft": _ft_rule, "ft-l": _ftl_rule}
"""What models get that nobody has tuned (docs/editing.md has the evidence)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """The numbers of a method that matter most, with the values to try.

    Args:
        together: numbers whose values are tried in all combinations, on few records.
        then: numbers that are tried afterwards, for the best of these.
        start: what these have until then; the method's default where not named.
    """

    together: Mapping[str, Sequence[int | float]]
    then: Mapping[str, Sequence[int | float]]
    start: Numbers


CLAMPS = (0.5, 1.0, 2.0, 4.0)
RATES = (1e-4, 5e-4, 2e-3, 5e-3, 2e-2)
BOUNDS = (5e-4, 2e-3, 5e-3, 1e-2, 2e-2)
_TRAINED_LAYERS = 6


def _rome_values(n_layers: int) -> Tunable:
    return Tunable(together={"layer": lower_half(n_layers)}, then={"clamp": CLAMPS}, start={})


def _ft_values(n_layers: int) -> Tunable:
    return Tunable(together={"layer": _spread(lower_half(n_layers)), "lr": RATES}, then={}, start={})


def _ftl_values(n_layers: int) -> Tunable:
    layers = _spread(lower_half(n_layers))
    return Tunable(together={"layer": layers, "lr": RATES}, then={"bound": BOUNDS}, start={"bound": BOUNDS[-1]})


TUNABLE: Mapping[str, Callable[[int], Tunable]] = {"rome": _rome_values, "ft": _ft_values, "ft-l": _ftl_values}
"""What `engram tune` tries, by number of layers."""


def lower_half(n_layers: int) -> tuple[int, ...]:
    """Return the layers up to the middle: no sweep that was published or made here found a higher one best."""
    return tuple(range(n_layers // 2 + 1)) if n_layers > 1 else (0,)


def _spread(layers: Sequence[int]) -> tuple[int, ...]:
    """Return at most six of the layers, evenly spread."""
    count = min(_TRAINED_LAYERS, len(layers))
    return tuple(layers[i * len(layers) // count] for i in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A method's numbers for one model.

    Args:
        numbers: every number that was asked for and has a value.
        notes: one sentence for each place that numbers came from, other than the user.
    """

    numbers: Numbers
    notes: tuple[str, ...]

    @property
    def layer(self) -> int:
        """The layer to edit."""
        return int(self.numbers["layer"])


def known(lm: "LM") -> Known:
    """Return a model's row in the published tables."""
    return str(lm.config.model_type), lm.n_layers


def chosen(lm: "LM", method: str, **given: int | float | None) -> Choice:
    """Return a method's numbers: what the user gave, else tuned, published, named in the model's config, or the rule.

    Args:
        lm: the model.
        method: the method's name.
        **given: the numbers that are wanted, with what the user gave for each (None: nothing).

    Raises:
        SettingError: a layer out of range.
    """
    layer = given.get("layer")
    if layer is not None and not 0 <= layer < lm.n_layers:
        raise SettingError(f"layer={layer}, but {lm.name} has {lm.n_layers} layers, counted 0 to {lm.n_layers - 1}.")
    numbers = {name: value for name, value in given.items() if value is not None}
    notes: list[str] = []
    for values, why in _sources(lm, method):
        if len(numbers) == len(given):
            break
        new = {name: values[name] for name in given if name in values and name not in numbers}
        if new:
            numbers |= new
            notes.append(f"{_in_words(new)}: {why}.")
    return Choice(numbers=numbers, notes=tuple(notes))


def untuned(lm: "LM", method: str) -> Numbers:
    """Return the numbers that a method takes where nothing was given or tuned, by name."""
    numbers: dict[str, int | float] = {}
    for values, _ in _untuned(lm, method):
        numbers = {**values, **numbers}
    return {name: numbers[name] for name in RULES[method](lm)}


def _sources(lm: "LM", method: str) -> Iterator[tuple[Numbers, str]]:
    """Yield what is known about a method's numbers, the best source first; the cache is only read where needed."""
    if (found := tuned(lm, method)) is not None:
        yield found.best.settings, found.why
    yield from _untuned(lm, method)


def _untuned(lm: "LM", method: str) -> Iterator[tuple[Numbers, str]]:
    yield PUBLISHED.get(method, {}).get(known(lm), {}), "the published choice for this model"
    yield _named(lm, method), "named in the model's config"
    rule = RULES[method](lm)
    yield rule, f"the rule for models that nobody has tuned (docs/editing.md). Better: {tune_command(lm, method)}"


def _named(lm: "LM", method: str) -> Numbers:
    """Return what a model's config names, as far as it makes sense."""
    found: dict[str, int | float] = {}
    for name in RULES[method](lm):
        value = getattr(lm.config, CONFIG_PREFIX[method] + name, None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if (isinstance(value, int) and 0 <= value < lm.n_layers) if name == "layer" else value > 0:
            found[name] = value
    return found


def tune_command(lm: "LM", method: str) -> str:
    """Return what to type to tune a method for a model."""
    return f"engram tune {lm.name} --data FILE{'' if method == 'rome' else f' --method {method}'}"


def _in_words(numbers: Numbers) -> str:
    """Return "Layer 1 and clamp 0.5"."""
    parts = [f"{name} {value:g}" for name, value in numbers.items()]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return text[0].upper() + text[1:]


def published_clamp(lm: "LM") -> float | int:
    """Return the clamp that belongs to a model with the published settings: its own, what its config names, or 4."""
    published = PUBLISHED["rome"].get(known(lm), {})
    return (dict(_named(lm, "rome")) | dict(published)).get("clamp", PUBLISHED_CLAMP)


def rome_layer(lm: "LM", layer: int | None) -> tuple[int, tuple[str, ...]]:
    """Return ROME's layer, and where it comes from when the user gave none.

    Raises:
        SettingError: out of range.
    """
    choice = chosen(lm, "rome", layer=layer)
    return choice.layer, choice.notes
