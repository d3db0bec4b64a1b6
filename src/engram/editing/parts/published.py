"""Where to edit, and how far: what was typed, what was tuned, what was published, what a config names, or a rule.

What was published is data: a row of `PUBLISHED` for each method and model, with its source.

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

Number = int | float | tuple[int, ...]
Numbers = Mapping[str, Number]
"""Settings by name: numbers, and layers where there are several."""


@dataclass(frozen=True, slots=True)
class Model:
    """What tells one published model from another of the same architecture.

    Args:
        type: `config.model_type`.
        layers: number of blocks.
        width: size of the states.
        vocabulary: number of tokens in thousands, added ones or none: Llama-2 has 32, Llama-3 has 128.
    """

    type: str
    layers: int
    width: int
    vocabulary: int

    def fits(self, lm: "LM") -> bool:
        """Say whether a model is this one, or was trained on from it."""
        config = lm.config
        same = (config.model_type, lm.n_layers, lm.d_model) == (self.type, self.layers, self.width)
        return same and abs(int(config.vocab_size) / 1000 - self.vocabulary) <= 1


MEDIUM, LARGE, XL = (Model("gpt2", *sizes, 50) for sizes in ((24, 1024), (36, 1280), (48, 1600)))
GPTJ, NEOX = Model("gptj", 28, 4096, 50), Model("gpt_neox", 44, 6144, 50)
LLAMA2, LLAMA3, LLAMA32 = Model("llama", 32, 4096, 32), Model("llama", 32, 4096, 128), Model("llama", 28, 3072, 128)
MISTRAL, QWEN2 = Model("mistral", 32, 4096, 32), Model("qwen2", 28, 3584, 152)


@dataclass(frozen=True, slots=True)
class Published:
    """One row: what a paper or its code uses for some models.

    Args:
        method: the method's name.
        models: the models.
        numbers: its settings by name.
        source: where they stand.
    """

    method: str
    models: tuple[Model, ...]
    numbers: Numbers
    source: str


_ROME, _MEMIT = "kmeng01/rome, hparams/ROME", "kmeng01/memit, hparams/MEMIT"
_FT, _SINGLE = "kmeng01/rome, hparams/FT", "arXiv 2405.00664: layer 1 is best for single edits"
_EASY, _EASY_GRACE = "EasyEdit, hparams/MEMIT", "EasyEdit, hparams/GRACE"
_LAYERS_4_8: Numbers = {"layers": (4, 5, 6, 7, 8), "weight": 15_000.0}

PUBLISHED: tuple[Published, ...] = (
    Published("rome", (MEDIUM,), {"layer": 8, "clamp": 3.0}, _ROME),
    Published("rome", (LARGE,), {"layer": 12, "clamp": 4.0}, _ROME),
    Published("rome", (XL,), {"layer": 17, "clamp": 4.0}, _ROME),
    Published("rome", (GPTJ,), {"layer": 5, "clamp": 4.0}, _ROME),
    Published("rome", (NEOX,), {"layer": 15, "clamp": 4.0}, _ROME),
    Published("rome", (LLAMA2, LLAMA3), {"layer": 1}, _SINGLE),
    Published("ft", (XL,), {"layer": 1}, _FT),
    Published("ft", (GPTJ,), {"layer": 21}, _FT),
    Published("ft-l", (MEDIUM,), {"layer": 0, "bound": 2e-3}, _FT),
    Published("ft-l", (LARGE,), {"layer": 0, "bound": 1e-3}, _FT),
    Published("ft-l", (XL,), {"layer": 0, "bound": 5e-4}, _FT),
    Published("ft-l", (GPTJ,), {"layer": 0, "bound": 5e-5}, _FT),
    Published("grace", (XL,), {"layer": 35, "radius": 1.0, "steps": 100, "lr": 1.0}, "Thartvigsen/GRACE"),
    Published("grace", (GPTJ,), {"layer": 25, "radius": 1.0, "steps": 200, "lr": 1.0}, _EASY_GRACE),
    Published("grace", (LLAMA2, LLAMA32), {"layer": 27, "radius": 1.0, "steps": 50, "lr": 1.0}, _EASY_GRACE),
    Published("grace", (QWEN2,), {"layer": 18, "radius": 1.0, "steps": 50, "lr": 1.0}, _EASY_GRACE),
    Published("memit", (XL,), {"layers": (13, 14, 15, 16, 17), "weight": 20_000.0, "steps": 20, "clamp": 0.75}, _MEMIT),
    Published("memit", (GPTJ,), {"layers": (3, 4, 5, 6, 7, 8), "weight": 15_000.0, "clamp": 0.75}, _MEMIT),
    Published(
        "memit",
        (NEOX,),
        {"layers": (6, 7, 8, 9, 10), "weight": 20_000.0, "steps": 20, "clamp": 0.3},
        "MEMIT paper, appendix B.1",
    ),
    Published("memit", (LLAMA3,), {**_LAYERS_4_8, "lr": 0.1, "clamp": 0.75}, "AlphaEdit's repository, hparams/MEMIT"),
    Published("memit", (LLAMA2, MISTRAL, QWEN2, LLAMA32), {**_LAYERS_4_8, "decay": 1e-3, "clamp": 4.0}, _EASY),
)
"""What papers and their code use, with the source of each row."""

PUBLISHED_CLAMP, NORMED_CLAMP, STATE_CLAMP = 4.0, 1.0, 0.75

CONFIG_PREFIX: Mapping[str, str] = {"rome": "engram_edit_", "ft-l": "engram_ft_l_"}
"""How a model's config names a method's numbers, such as `engram_edit_layer`; engram_METHOD_ where it is not here."""

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


def _memit_rule(lm: "LM") -> Numbers:
    """From an eighth to a quarter of the depth, as published for 28 and 32 layers; λ as large as keys are wide.

    The mean of kᵀC⁻¹k over text is the width of k. With λ = width an average key so gets half of what is asked for,
    whatever the model; what was published for GPT-J and Llama is 0.9 to 1.4 times that.
    """
    last = lm.n_layers - 1
    begin = min(max(1, lm.n_layers // 8), last)
    layers = tuple(range(begin, min(max(begin, lm.n_layers // 4), last) + 1))
    return {"layers": layers, "weight": float(lm.d_mlp), "clamp": STATE_CLAMP, "steps": 25, "lr": 0.5, "decay": 0.5}


def _grace_rule(lm: "LM") -> Numbers:
    """High up, where the last token's state says what is asked for; published are 0.64 to 0.89 of the depth."""
    return {"layer": round(0.75 * (lm.n_layers - 1)), "radius": 1.0, "steps": 100, "lr": 1.0}


RULES: Mapping[str, "Callable[[LM], Numbers]"] = {
    "rome": _rome_rule,
    "ft": _ft_rule,
    "ft-l": _ftl_rule,
    "grace": _grace_rule,
    "memit": _memit_rule,
}
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
    start: Mapping[str, int | float]


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
        return self.layers[-1]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to edit, in ascending order."""
        several = self.numbers.get("layers", self.numbers.get("layer", ()))
        return tuple(sorted(several)) if isinstance(several, tuple) else (int(several),)

    def number(self, name: str) -> float | int:
        """Return one of the numbers."""
        value = self.numbers[name]
        return value[-1] if isinstance(value, tuple) else value


def published(lm: "LM", method: str) -> Published | None:
    """Return what was published of a method for a model."""
    rows = (row for row in PUBLISHED if row.method == method)
    return next((row for row in rows if any(model.fits(lm) for model in row.models)), None)


def chosen(lm: "LM", method: str, **given: Number | None) -> Choice:
    """Return a method's numbers: what the user gave, else tuned, published, named in the model's config, or the rule.

    Args:
        lm: the model.
        method: the method's name.
        **given: the numbers that are wanted, with what the user gave for each (None: nothing).

    Raises:
        SettingError: a layer out of range.
    """
    for name in ("layer", "layers"):
        layers = given.get(name)
        wanted = layers if isinstance(layers, tuple) else () if layers is None else (layers,)
        if layers == () or any(not 0 <= layer < lm.n_layers for layer in wanted):
            raise SettingError(
                f"{name}={layers}, but {lm.name} has {lm.n_layers} layers, counted 0 to {lm.n_layers - 1}."
            )
    numbers: dict[str, Number] = {name: value for name, value in given.items() if value is not None}
    notes: list[str] = []
    for values, why in _sources(lm, method):
        if len(numbers) == len(given):
            break
        new = {name: values[name] for name in given if name in values and name not in numbers}
        if new:
            numbers |= new
            notes.append(f"{_in_words(new)}: {why}.")
    return Choice(numbers=numbers, notes=tuple(notes))


def untuned(lm: "LM", method: str) -> Mapping[str, int | float]:
    """Return the single numbers that a method takes where nothing was given or tuned, by name."""
    numbers: dict[str, Number] = {}
    for values, _ in _untuned(lm, method):
        numbers = {**values, **numbers}
    found = ((name, numbers[name]) for name in RULES[method](lm))
    return {name: value for name, value in found if not isinstance(value, tuple)}


def _sources(lm: "LM", method: str) -> Iterator[tuple[Numbers, str]]:
    """Yield what is known about a method's numbers, the best source first; the cache is only read where needed."""
    if (found := tuned(lm, method)) is not None:
        yield found.best.settings, found.why
    yield from _untuned(lm, method)


def _untuned(lm: "LM", method: str) -> Iterator[tuple[Numbers, str]]:
    if (row := published(lm, method)) is not None:
        yield row.numbers, f"the published choice for this model ({row.source})"
    yield _named(lm, method), "named in the model's config"
    rule = RULES[method](lm)
    better = f" Better: {tune_command(lm, method)}" if method in TUNABLE else ""
    yield rule, f"the rule for models that nobody has tuned (docs/editing.md).{better}".rstrip(".")


def _named(lm: "LM", method: str) -> Numbers:
    """Return what a model's config names, as far as it makes sense."""
    found: dict[str, Number] = {}
    prefix = CONFIG_PREFIX.get(method, f"engram_{method}_")
    for name in RULES[method](lm):
        value = getattr(lm.config, prefix + name, None)
        if name == "layers":
            layers = tuple(value) if isinstance(value, list | tuple) else ()
            if layers and all(isinstance(layer, int) and 0 <= layer < lm.n_layers for layer in layers):
                found[name] = layers
        elif isinstance(value, bool) or not isinstance(value, int | float):
            continue
        elif (isinstance(value, int) and 0 <= value < lm.n_layers) if name == "layer" else value > 0:
            found[name] = value
    return found


def tune_command(lm: "LM", method: str) -> str:
    """Return what to type to tune a method for a model."""
    return f"engram tune {lm.name} --data FILE{'' if method == 'rome' else f' --method {method}'}"


def _in_words(numbers: Numbers) -> str:
    """Return "Layer 1 and clamp 0.5"."""
    parts = [f"{name} {_range(value) if isinstance(value, tuple) else f'{value:g}'}" for name, value in numbers.items()]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return text[0].upper() + text[1:]


def _range(layers: tuple[int, ...]) -> str:
    """Return "3-8" for layers that follow each other, else "1, 5"."""
    first, last = min(layers), max(layers)
    whole = len(layers) > 1 and layers == tuple(range(first, last + 1))
    return f"{first}-{last}" if whole else ", ".join(map(str, layers))


def published_clamp(lm: "LM") -> float | int:
    """Return the clamp that belongs to a model with the published settings: its own, what its config names, or 4."""
    row = published(lm, "rome")
    found: Numbers = {**_named(lm, "rome"), **(row.numbers if row else {})}
    clamp = found.get("clamp", PUBLISHED_CLAMP)
    return PUBLISHED_CLAMP if isinstance(clamp, tuple) else clamp


def rome_layer(lm: "LM", layer: int | None) -> tuple[int, tuple[str, ...]]:
    """Return ROME's layer, and where it comes from when the user gave none.

    Raises:
        SettingError: out of range.
    """
    choice = chosen(lm, "rome", layer=layer)
    return choice.layer, choice.notes
