"""`LM`: a Hugging Face decoder and its tokenizer behind one set of names. Wraps them and changes neither."""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from engram.errors import NumericalError, PromptTooLong, UnsupportedModel
from engram.facts import Fact
from engram.given import require, require_texts
from engram.models import checks
from engram.models.encoding import Encoded, Side, encode, require_offsets
from engram.models.fingerprint import fingerprint_of
from engram.models.generation import Generation, generate, next_tokens
from engram.models.layouts import Layout, find_layout
from engram.models.linear import features, is_conv1d
from engram.models.passes import Passes
from engram.models.scoring import score
from engram.models.sites import Site, place_of, sites_of
from engram.models.speed import contiguous_input, fused_activations

_SIZES = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "n_heads": ("num_attention_heads", "n_head", "num_heads"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
}


class LM:
    """A decoder language model with its tokenizer.

    Args:
        model: any Hugging Face causal language model without experts, in evaluation mode afterwards.
        tokenizer: its fast tokenizer.
        name: what to call it in messages and records; the model's own name otherwise.
        layout: where its blocks are; found from the family or the structure otherwise.

    Raises:
        UnsupportedModel: mixture of experts, encoder-decoder, sizes missing, or a structure that was not recognised.
        TokenizerError: the tokenizer does not report character offsets.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, name: str | None = None, layout: Layout | None = None
    ) -> None:
        require(model, nn.Module, "model")
        require_offsets(tokenizer)
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.config: Any = model.config
        self.name = name or str(getattr(self.config, "_name_or_path", "")) or type(model).__name__
        self.layout = layout or find_layout(model)
        self.n_layers = self._size("n_layers")
        self.n_heads = self._said("n_heads")
        """Number of attention heads; 0 where the config names none (Mamba has none)."""
        self.d_model = self._size("d_model")
        self.overwritten: dict[str, Any] = {}  # by parameter name, what `Edit.apply_` keeps to take edits back
        self.standing: dict[str, ExitStack] = {}  # by an edit's digest, what `Edit.apply_` let act beside the weights
        self.passes = Passes(self.model)
        self.acting: list[Any] = []  # the edits that act on it now, beside its weights or in them
        self.remarks: set[str] = set()  # what was said about edits that contradict each other
        self.heeds_mask = True
        """Whether padding on the left plays no part; found out below, as what follows."""
        whole = checks.validate(self)
        self.can_continue = checks.can_continue(self, whole)
        """Whether keys and values that were kept give what a whole pass gives; the model is run whole otherwise."""
        self.heeds_mask = self.can_continue or checks.heeds_mask(self, whole)

    def __repr__(self) -> str:
        return (
            f"LM({self.name!r}, {self.config.model_type}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def _said(self, name: str) -> int:
        values = (getattr(self.config, key, None) for key in _SIZES[name])
        return next((value for value in values if isinstance(value, int) and value > 0), 0)

    def _size(self, name: str) -> int:
        if size := self._said(name):
            return size
        raise UnsupportedModel(
            f"The config of {self.name!r} ({self.config.model_type!r}) does not say {name}: none of "
            f"{', '.join(_SIZES[name])} is set. Is it a language model's config.json?"
        )

    # Sizes and places

    @cached_property
    def d_mlp(self) -> int:
        """Size of a key: the width of the MLP's output projection's input."""
        module = self.mlp_out(0)
        sizes = features(module)
        return sizes[0] if sizes is not None else int(module.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """Number of rows of the token embedding."""
        return int(getattr(self.embed, "num_embeddings", None) or self.embed.weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """The longest prompt in tokens, where the config says."""
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            value = getattr(self.config, key, None)
            if isinstance(value, int) and value > 0:
                return value
        return None

    @property
    def device(self) -> torch.device:
        """Where token ids must be: the device on which the embedding runs."""
        hook = getattr(self.embed, "_hf_hook", None)  # accelerate keeps offloaded weights on "meta"
        where = getattr(hook, "execution_device", None)
        return self.embed.weight.device if where is None else torch.device(where)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights (of those that are no codes, in a quantised model)."""
        first = self.embed.weight.dtype
        if first.is_floating_point:
            return first
        return next((p.dtype for p in self.model.parameters() if p.dtype.is_floating_point), torch.float32)

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, layer 0 first."""
        blocks = self.model.get_submodule(self.layout.blocks)
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != self.n_layers:
            raise UnsupportedModel(
                f"{self.layout.blocks!r} of {type(self.model).__name__} is no list of {self.n_layers} blocks."
            )
        return blocks

    @cached_property
    def embed(self) -> Any:
        """The token embedding module."""
        return self.model.get_submodule(self.layout.embed)

    def attn_out(self, layer: int) -> Any:
        """Return the attention's output projection of a layer."""
        return self.blocks[layer].get_submodule(self.layout.attn_out)

    def mlp_out(self, layer: int) -> Any:
        """Return the MLP's output projection of a layer: the linear memory of keys and values."""
        return self.blocks[layer].get_submodule(self.layout.mlp_out)

    def mlp_out_name(self, layer: int) -> str:
        """Return the parameter name of `mlp_out(layer)`'s weight."""
        return f"{self.layout.blocks}.{layer}.{self.layout.mlp_out}.weight"

    @property
    def weight_is_transposed(self) -> bool:
        """Whether projections store [in, out] (GPT-2's Conv1D) rather than [out, in] (Linear)."""
        return is_conv1d(self.mlp_out(0))

    def module(self, site: Site) -> nn.Module:
        """Return the module at which a site is: whose output, input, or part of them it is.

        Raises:
            LayerNeverRan: the model has no such layer.
            UnsupportedModel: it has no such site.
        """
        return place_of(self, site)[0]

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The kinds of sites that it has."""
        return sites_of(self)

    # What this model allows, found out once

    @cached_property
    def block_returns_tuple(self) -> bool:
        """Whether blocks return tuples (BLOOM, Falcon, older transformers) rather than tensors."""
        seen: list[bool] = []
        handle = self.blocks[0].register_forward_hook(lambda _m, _a, out: seen.append(isinstance(out, tuple)))
        try:
            with torch.no_grad():
                self.forward(checks.sample_ids(self))
        finally:
            handle.remove()
        return seen[0]

    @cached_property
    def adds_mlp_to_state(self) -> bool:
        """Whether a change of the MLP's output appears unchanged in the block's output."""
        return checks.adds_mlp_to_state(self)

    @cached_property
    def adds_up(self) -> bool:
        """Whether `added_attn` and `added_mlp` are all that a block adds to the state."""
        return checks.adds_up(self)

    @cached_property
    def can_resume(self) -> bool:
        """Whether `resume` equals the full pass on this model; otherwise plain passes are used."""
        return checks.can_resume(self)

    @cached_property
    def can_skip_last(self) -> bool:
        """Whether `resume(last_only=True)` equals the full pass on this model."""
        return self.can_resume and checks.can_skip_last(self)

    @property
    def door(self) -> str:
        """The way in which texts are run, a key of `engram.models.runs.DOORS`."""
        return "decoder" if self.can_continue else "whole"

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the architecture and the weights as first seen (16 hexadecimal digits).

        Equal for the same weights on other devices and for fp32 and bf16 copies.
        """
        return fingerprint_of(self.model)

    # Running

    @cached_property
    def _accepts(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)

    @cached_property
    def _accepts_any(self) -> bool:
        every = inspect.signature(self.model.forward).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in every)

    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        *,
        mask: Int[Tensor, "batch all_pos"] | None = None,
        cache: Cache | None = None,
        keep: int | Int[Tensor, " keep"] = 0,
    ) -> Float[Tensor, "batch keep vocab"]:
        """Run the model on token ids and return logits of the last `keep` positions (0: all; or given indices).

        Args:
            ids: token ids.
            mask: 1 at real tokens, over cached and new positions; only where rows are padded.
            cache: keys and values of earlier positions; updated by the model.
            keep: which positions' logits are wanted.

        Raises:
            UnsupportedModel: rows are padded on the left, and the model does not heed the mask.
        """
        if mask is not None and not self.heeds_mask and bool((mask[:, 0] == 0).any()):
            raise UnsupportedModel(
                f"{self.name} does not heed an attention mask, so rows of different lengths cannot be read together "
                f"with padding on the left. Give one prompt at a time, or pad on the right."
            )
        return self._run({"input_ids": ids.to(self.device)}, ids.shape[1], mask, cache, keep)

    def forward_from(
        self,
        *,
        rows: int,
        positions: int,
        cache: Cache | None,
        mask: Int[Tensor, "batch all_pos"] | None,
        keep: int | Int[Tensor, " keep"],
    ) -> Float[Tensor, "batch keep vocab"]:
        """Run the model's forward on blank embeddings, for `resume`, whose hooks supply the states."""
        blank = torch.zeros(rows, positions, self.embed.embedding_dim, device=self.device, dtype=self.dtype)
        return self._run({"inputs_embeds": blank}, positions, mask, cache, keep)

    def _run(
        self,
        inputs: dict[str, Tensor],
        positions: int,
        mask: Tensor | None,
        cache: Cache | None,
        keep: int | Tensor,
    ) -> Tensor:
        options: dict[str, Any] = {"use_cache": cache is not None}
        options["cache" if "cache" in self._accepts else "past_key_values"] = cache  # renamed in transformers 5.24
        if mask is not None:
            options["attention_mask"] = mask.to(self.device)
            if "position_ids" in self._accepts:
                options["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -positions:].to(self.device)
        with fused_activations(self.model), contiguous_input(self.model.get_output_embeddings()):
            if not self._accepts_any:
                options = {name: value for name, value in options.items() if name in self._accepts}
            if "logits_to_keep" in self._accepts:
                return self.model(**inputs, **options, logits_to_keep=keep).logits
            logits = self.model(**inputs, **options).logits
        return logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]

    # Text

    def encode(self, texts: str | Sequence[str], *, padding_side: Side = "right") -> Encoded:
        """Encode one or more texts, with character offsets.

        Raises:
            PromptTooLong: a text has more tokens than the model has positions.
            FactError: a text has no tokens.
        """
        require_texts(texts, "texts")
        many = [texts] if isinstance(texts, str) else list(texts)
        return encode(self.tokenizer, many, padding_side=padding_side, max_positions=self.max_positions)

    def subject_span(self, fact: Fact) -> range:
        """Return the token positions of a fact's subject in its encoded prompt (no padding).

        Raises:
            PromptTooLong: the prompt does not fit into the model's positions.
            FactError: the tokenizer drops the subject's characters.
        """
        return self.encode(fact.text).span(0, *fact.subject_chars)

    def tokens(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Return each token as readable text."""
        return [self.tokenizer.decode([int(i)]) for i in ids]

    def score(
        self,
        prompts: str | Sequence[str],
        continuations: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_size: int = 64,
    ) -> Float[Tensor, "batch continuation"]:
        """Return the mean token negative log-likelihood (nats) of continuations after prompts (as CounterFact scores).

        Args:
            prompts: one or more prompts; each is run once, whatever the number of its continuations.
            continuations: for every prompt the same number of continuations, or one list for all prompts. One space
                is put between prompt and continuation unless either has white space there.
            batch_size: rows per pass; results do not depend on it.

        Raises:
            PromptTooLong: prompt and continuation do not fit into the model's positions.
            FactError: a continuation has no tokens.
            NumericalError: the model's output has NaN.
        """
        return score(self, prompts, continuations, batch_size=batch_size)

    def next_tokens(self, prompt: str, *, k: int = 5) -> list[tuple[str, float]]:
        """Return the k most probable next tokens with their probabilities."""
        return next_tokens(self, prompt, k=k)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 30,
        top_k: int = 1,
        seed: int = 0,
    ) -> Any:
        """Continue one prompt (returns a text) or several (returns a list), prompt included.

        Args:
            prompts: what to continue.
            max_new_tokens: how many tokens at most; the end-of-text token ends a text earlier.
            top_k: 1 takes the most probable token (greedy); k > 1 samples among the k most probable.
            seed: for sampling. A prompt's text depends on seed and prompt, not on the batch.

        Raises:
            PromptTooLong: a prompt does not fit into the model's positions.
        """
        return generate(self, prompts, Generation(max_new_tokens=max_new_tokens, top_k=top_k, seed=seed))

    def require_positions(self, length: int, what: str) -> None:
        """Check that so many tokens fit.

        Raises:
            PromptTooLong: they do not.
        """
        if self.max_positions is not None and length > self.max_positions:
            raise PromptTooLong(f"{what}: {length} tokens, but {self.name} has {self.max_positions} positions.")

    def require_finite(self, tensor: Tensor, what: str) -> None:
        """Check a result.

        Raises:
            NumericalError: it contains NaN or infinity; `what` says where.
        """
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):  # one pass: NaN and infinity survive a sum
            raise NumericalError(
                f"{what} of {self.name} contains NaN or infinity. In half precision try dtype='float32' or 'bfloat16'."
            )
