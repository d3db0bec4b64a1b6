"""The logit lens: what every state would say if it were the last one (nostalgebraist, 2020)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from engram.errors import SettingError, UnsupportedModel
from engram.facts import Fact
from engram.locate.grid import Grid
from engram.locate.groups import token_groups
from engram.models import Site, record, resume
from engram.models.continuations import asked
from engram.progress import Doing, Progress

if TYPE_CHECKING:
    from engram.models import LM

READING = Doing("reading layers", unit="layers")
READINGS = {
    "top": "the most probable token, and its probability",
    "probability": "probability of the answer",
    "rank": "rank of the answer",
    "entropy": "entropy (nats)",
    "kl": "divergence from the output (nats)",
}
"""The parts of a lens's grid, and what pictures call them."""


@dataclass(frozen=True, kw_only=True)
class Lens:
    """The model's own final norm and unembedding, read off every state.

    The grid's parts are `top` (probability of the most probable token, whose words stand in the cells), `probability`
    and `rank` (from 1) of the answer, `entropy`, and `kl`, the divergence from the model's own output (both in nats).
    The answer is the fact's `original`, else what the model says; of a token that is generated, that token.

    Args:
        top: how many words are kept of every state.
        new_tokens: how many tokens the model goes on with; then these are the columns, and layers the rows.

    Raises:
        SettingError: a number that is not allowed.
    """

    name: ClassVar[str] = "lens"
    top: int = 5
    new_tokens: int = 0

    def __post_init__(self) -> None:
        for name, number, least in (("top", self.top, 1), ("new_tokens", self.new_tokens, 0)):
            if number < least:
                raise SettingError(f"{name}={number}; it must be {least} or more.")

    @torch.no_grad()
    def __call__(self, lm: "LM", fact: Fact, *, progress: Progress | None = None) -> Grid:
        """Read every layer of one prompt; arguments as for a `Locator`.

        Raises:
            UnsupportedModel: the model's output is not what its last state says.
            FactError: the prompt or its answer cannot be used.
            PromptTooLong: what is generated does not fit into the model's positions.
            NumericalError: NaN or infinity in the model's output.
        """
        prompt = asked(lm, fact)
        reads, said = [list[tuple[Tensor, Tensor]]() for _ in range(lm.n_layers)], list[int]()
        for states, logits in _passes(lm, prompt.ids, self.new_tokens):
            said.append(int(logits.argmax()) if self.new_tokens or prompt.answer is None else prompt.answer)
            output = _says(lm, states[-1])
            _require_equal(lm, output[-1], logits)
            for layer, state in enumerate(states):
                reads[layer].append(_read(_says(lm, state), output, said[-1], self.top))
                if progress is not None:
                    progress(READING, layer + 1, lm.n_layers)
        values = torch.stack([torch.cat([numbers for numbers, _ in row], dim=1) for row in reads], dim=1)
        ids = torch.stack([torch.cat([best for _, best in row]) for row in reads])
        words = tuple(tuple(tuple(lm.tokens(cell)) for cell in row) for row in ids)
        layers, generated = tuple(map(str, range(lm.n_layers))), bool(self.new_tokens)
        tokens = tuple(lm.tokens(said if generated else prompt.ids[0]))
        subject = range(0) if generated else prompt.subject
        groups = {} if generated else token_groups((subject.start, subject.stop), len(tokens))
        note = f"the model goes on with {''.join(tokens)!r}" if generated else f"answer: {lm.tokens(said)[0]!r}"
        return Grid(
            values=(values if generated else values.transpose(1, 2)).unsqueeze(-1),
            axes=("reading", "layer", "token") if generated else ("reading", "token", "layer"),
            labels=(tuple(READINGS), layers, tokens) if generated else (tuple(READINGS), tokens, layers),
            settings={"locator": self.name, **asdict(self)},
            text=fact.text,
            model=lm.name,
            titles=READINGS,
            marked=tuple(subject),
            groups={name: tuple(rows) for name, rows in groups.items()},
            words=words if generated else tuple(zip(*words, strict=True)),
            notes=(note,),
        )


def _passes(lm: "LM", ids: Int[Tensor, "1 pos"], new: int) -> Iterator[tuple[list[Tensor], Float[Tensor, " vocab"]]]:
    """Yield every layer's states [1 pos d_model] and the last logits: of the prompt, or of each generated token."""
    states = [Site("state", layer) for layer in range(lm.n_layers)]
    lm.require_positions(ids.shape[1] + new, "Prompt and generated text")
    cache = DynamicCache() if new and lm.can_resume else None  # a model that cannot go on reads everything again
    for _ in range(max(1, new)):
        with record(lm, states) as seen:
            logits = lm.forward(ids, cache=cache, keep=1)[0, -1]
        lm.require_finite(logits, "The output")
        device = seen[states[-1]].device  # layers may be on several
        yield [seen[site][:, -1 if new else 0 :].to(device) for site in states], logits
        said = logits.argmax().view(1, 1).to(ids.device)
        if int(said) == lm.tokenizer.eos_token_id:
            return
        ids = said if cache is not None else torch.cat([ids, said], dim=1)


def _says(lm: "LM", state: Float[Tensor, "1 pos d_model"]) -> Float[Tensor, "pos vocab"]:
    """Return the log-probabilities of what a state would say: the model's own forward, with every block left out."""
    return resume(lm, state, layer=lm.n_layers, keep=0)[0].float().log_softmax(-1)


def _read(
    logp: Float[Tensor, "pos vocab"], output: Float[Tensor, "pos vocab"], answer: int, top: int
) -> tuple[Tensor, Tensor]:
    """Return one layer's numbers [reading pos] and its most probable tokens' ids [pos top]."""
    best, words = logp.topk(min(top, logp.shape[-1]))
    mine = logp[:, answer]
    numbers = torch.stack(
        [
            best[:, 0].exp(),
            mine.exp(),
            (logp > mine[:, None]).sum(-1) + 1.0,
            -(logp.exp() * logp).nansum(-1),
            (output.exp() * (output - logp)).nansum(-1).clamp_min(0.0),
        ]
    )
    return numbers.cpu(), words.cpu()


def _require_equal(lm: "LM", read: Float[Tensor, " vocab"], logits: Float[Tensor, " vocab"]) -> None:
    """Check that the last layer says what the model says."""
    wanted = logits.float().log_softmax(-1)
    if bool((read - wanted).abs().max() > torch.finfo(lm.dtype).eps ** 0.5 * wanted.abs().max()):
        raise UnsupportedModel(f"{lm.name}'s output is more than a norm and an unembedding of its last state: no lens.")
