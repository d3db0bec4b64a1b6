"""A codebook at one module (Hartvigsen et al. 2023, arXiv 2211.11031): near a stored key, a stored value is given out.

What enters the module at the prompt's last token is compared with the keys. If the nearest lies within its radius, the
module gives out its value; otherwise nothing at all happens. Codebooks of one place are joined as GRACE grows one:
an entry far from all others is added, one near a key of the same label widens that key's radius and takes its value
over, and one near a key of another label halves the distance between both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.editing.changes.change import Arrays, Change, Plain, array
from engram.editing.changes.site import SiteChange
from engram.errors import EditError
from engram.models.passes import Pass

RULES: Mapping[str, tuple[str, ...]] = {
    "replacement": ("last", "prompt", "all"),
    "expand": ("coverage", "moving_average"),
    "rule": ("repaired", "code", "easyedit"),
}
"""What a codebook goes by, and the words that are allowed for each."""

_WIDER = 1.01  # what lies on a radius is within it: else rounding decides
_SAME = 1e-3  # keys closer than this part of their length are one key; half their distance would be no radius
_GAP = 1e-5  # by which the published code keeps two balls apart


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Codebook(SiteChange):
    """Keys with radii, and what a module gives out near them.

    Args:
        module: path of the module in the model.
        keys: what enters it at the last token of the prompts that were edited, [entry in].
        values: what it gives out there, [entry out].
        radii: how near a prompt must be to each key, [entry].
        labels: what each entry stands for: of entries that are near each other, equal ones are joined.
        replacement: where the value stands: at the prompt's `"last"` token, at all of the `"prompt"` before it, or at
            `"all"` positions, new ones included.
        expand: how an entry grows: `"coverage"` widens the radius, `"moving_average"` moves the key as well.
        rule: how entries meet. `"repaired"`; `"code"`, radii to the last digit as published, also of equal keys;
            `"easyedit"`, which compares with the label of another entry, as EasyEdit does.
    """

    kind: ClassVar[str] = "codebook"

    keys: Float[Tensor, "entry in"]
    values: Float[Tensor, "entry out"]
    radii: Float[Tensor, " entry"]
    labels: tuple[str, ...]
    replacement: Literal["last", "prompt", "all"] | str = "last"
    expand: Literal["coverage", "moving_average"] | str = "coverage"
    rule: Literal["repaired", "code", "easyedit"] | str = "repaired"

    @classmethod
    def empty(cls, module: str, enters: int, leaves: int, replacement: str, expand: str, rule: str) -> "Codebook":
        """Return a codebook without entries, to be grown before it can act."""
        return cls(
            module=module,
            keys=torch.empty(0, enters),
            values=torch.empty(0, leaves),
            radii=torch.empty(0),
            labels=(),
            replacement=replacement,
            expand=expand,
            rule=rule,
        )

    def __call__(
        self, inputs: Float[Tensor, "row pos in"], outputs: Float[Tensor, "row pos out"], now: Pass
    ) -> Float[Tensor, "row pos out"]:
        """Give out the value of the entry that was met at the end of each row's prompt, if any was."""
        entry = now.chosen(lambda: self.met(now.at_prompt_end(inputs)))
        here = placed(self.replacement, now.index, now.prompt_end[:, None])
        value = self.values.to(outputs.dtype)[entry.clamp_min(0)]
        return torch.where(((entry >= 0)[:, None] & here)[..., None], value[:, None], outputs)

    def nearest(self, queries: Float[Tensor, "row in"]) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        """Return the nearest entry of each query, the latest of equally near ones, and how far it is."""
        gaps = torch.cdist(queries.float(), self.keys.float(), compute_mode="donot_use_mm_for_euclid_dist")
        distance, back = gaps.flip(1).min(1)
        return len(self.labels) - 1 - back, distance

    def met(self, queries: Float[Tensor, "row in"]) -> Int[Tensor, " row"]:
        """Return the entry within whose radius each query lies; -1 where there is none."""
        entry, distance = self.nearest(queries)
        return torch.where(distance <= self.radii.to(distance)[entry], entry, -1)

    def with_entry(
        self, key: Float[Tensor, " in"], value: Float[Tensor, " out"], radius: float, label: str
    ) -> "tuple[Codebook, int]":
        """Return the codebook with one more entry, joined with those near it, and which entry now has the value."""
        if not self.labels:
            return self._added(key, value, radius, label, self.radii), 0
        entries, distances = self.nearest(key[None])
        entry, distance = int(entries), float(distances)
        own = float(self.radii[entry])
        same = self.rule == "repaired" and distance <= _SAME * float(key.norm())
        if distance > radius + own and not same:
            return self._added(key, value, radius, label, self.radii), len(self.labels)
        if not same and not self._is_label(entry, label):
            apart = _put(self.radii, entry, distance / 2 - _GAP)
            return self._added(key, value, distance / 2, label, apart), len(self.labels)
        keys, radii = self.keys, self.radii
        if distance > own:
            radii = _put(radii, entry, distance * (_WIDER if self.rule == "repaired" else 1))
            keys = _put(keys, entry, (keys[entry] + key) / 2) if self.expand == "moving_average" else keys
        labels = (*self.labels[:entry], label, *self.labels[entry + 1 :]) if same else self.labels
        return replace(self, keys=keys, radii=radii, labels=labels, values=_put(self.values, entry, value)), entry

    def with_values(self, values: Float[Tensor, "entry out"]) -> "Codebook":
        """Return the codebook with other values."""
        return replace(self, values=values)

    @property
    def rules(self) -> tuple[str, ...]:
        """What it goes by, in the order of `RULES`."""
        return self.replacement, self.expand, self.rule

    def merged(self, later: Change) -> "Codebook | None":
        """Return this codebook with a later one's entries, each met as GRACE meets them; None under other rules."""
        if not isinstance(later, Codebook) or later.rules != self.rules:
            return None
        if (self.keys.shape[1], self.values.shape[1]) != (later.keys.shape[1], later.values.shape[1]):
            raise EditError(f"Two codebooks at {self.module!r} have keys or values of two sizes.")
        grown = self
        for key, value, radius, label in zip(later.keys, later.values, later.radii.tolist(), later.labels, strict=True):
            grown, _ = grown.with_entry(key, value, radius, label)
        return grown

    def parts(self) -> tuple[Arrays, Plain]:
        """See `Change.parts`."""
        plain = {"labels": list(self.labels), **dict(zip(RULES, self.rules, strict=True))}
        return {"keys": self.keys, "values": self.values, "radii": self.radii}, plain

    @classmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "Codebook":
        """See `Change.of`."""
        keys, values, radii = (
            array(arrays, name, dims=dims) for name, dims in (("keys", 2), ("values", 2), ("radii", 1))
        )
        labels = _words(plain.get("labels"))
        if not len(labels) == len(keys) == len(values) == len(radii) or not labels:
            raise EditError("A codebook needs as many keys as values, radii and labels, and at least one.")
        chosen: dict[str, str] = {}
        for name, allowed in RULES.items():
            if plain.get(name) not in allowed:
                raise EditError(f"A codebook's {name!r} is {plain.get(name)!r}; allowed are {', '.join(allowed)}.")
            chosen[name] = plain[name]
        return cls(module=where, keys=keys, values=values, radii=radii, labels=labels, **chosen)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers enter and leave the module."""
        return self.keys.shape[1], self.values.shape[1]

    def text(self) -> str:
        """See `Change.text`."""
        low, high = float(self.radii.min()), float(self.radii.max())
        width = f"radius {high:.3g}" if low == high else f"radii {low:.3g} to {high:.3g}"
        return f"codebook, {len(self.labels)} {'entry' if len(self.labels) == 1 else 'entries'}, {width}"

    def _is_label(self, entry: int, label: str) -> bool:
        """Say whether an entry has a label; EasyEdit keeps labels in the opposite order of keys."""
        return self.labels[len(self.labels) - 1 - entry if self.rule == "easyedit" else entry] == label

    def _added(self, key: Tensor, value: Tensor, radius: float, label: str, radii: Tensor) -> "Codebook":
        return replace(
            self,
            keys=torch.cat([self.keys, key[None].to(self.keys)]),
            values=torch.cat([self.values, value[None].to(self.values)]),
            radii=torch.cat([radii, radii.new_tensor([radius])]),
            labels=(*self.labels, label),
        )


def placed(where: str, index: Int[Tensor, "..."], end: Int[Tensor, "row 1"]) -> Tensor:
    """Say at which positions a value stands, for prompts whose last token has the index `end`: [row pos]."""
    if where == "all":
        return torch.ones_like(index == end)
    return index < end if where == "prompt" else index == end


def _put(rows: Tensor, index: int, new: Any) -> Tensor:
    changed = rows.clone()
    changed[index] = torch.as_tensor(new).to(rows)
    return changed


def _words(given: object) -> tuple[str, ...]:
    words: Sequence[Any] = given if isinstance(given, list | tuple) else ()
    if not all(isinstance(word, str) for word in words):
        raise EditError("A codebook's labels must be words.")
    return tuple(words)
