"""Reading and changing what flows through a model: `record` and `patch`.

The only file that registers hooks. Hooks live exactly as long as their `with` block, whatever ends it.

    with record(lm, [Site("mlp", 17)], stop=True) as seen:
        lm.forward(ids)
    seen[Site("mlp", 17)]                                   # [batch pos d_model]

    with patch(lm, {Site("mlp", 17): lambda x: x * 0}):
        lm.next_tokens("The Space Needle is in")
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engram.errors import LayerNeverRan, SettingError, did_you_mean
from engram.given import require, require_each, require_lm
from engram.showing import Shown, short

if TYPE_CHECKING:
    from engram.models.lm import LM

KINDS = ("attn", "embed", "key", "mlp", "state")
_TANH_GELUS = ("FastGELUActivation", "NewGELUActivation")  # transformers' names of one function, written out in steps
Activation = Float[Tensor, "batch pos width"]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in the network, the same name in every family.

    Kinds: `state` (a block's output, h_l), `mlp` and `attn` (outputs of the MLP's and the attention's output
    projection), `key` (input of the MLP's output projection), `embed` (token embedding, layer 0 only).

    Raises:
        SettingError: an unknown kind or a negative layer.
    """

    kind: str
    layer: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"There is no site {self.kind!r}. {did_you_mean(self.kind, KINDS)}")
        if self.layer < 0:
            raise SettingError(f"Layers count from 0; layer {self.layer} was asked for.")

    def __str__(self) -> str:
        return self.kind if self.kind == "embed" else f"{self.kind} of layer {self.layer}"


class _Stop(Exception):
    """Raised inside a forward pass to end it, caught by the `with` block that asked for it."""


class Recording(Shown, Mapping[Site, Tensor]):
    """What `record` saw: one tensor [batch pos width] per site.

    Args:
        grad: whether the tensors are part of the computation, so that gradients flow to them.
    """

    def __init__(self, *, grad: bool = False) -> None:
        self._tensors: dict[Site, Tensor] = {}
        self._grad = grad

    def __getitem__(self, site: Site) -> Tensor:
        return self._tensors[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _lines(self) -> Iterator[str]:
        yield f"Recording of {len(self)} site(s)"
        yield from (f"  {site}: {short(tensor)}" for site, tensor in self._tensors.items())

    def store(self, site: Site, tensor: Tensor) -> Tensor:
        """Keep a copy, for some families change activations in place afterwards; return what the pass goes on with."""
        if not self._grad:
            self._tensors[site] = tensor.detach().clone()
            return tensor
        kept = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        self._tensors[site] = kept
        return kept.clone()


@contextmanager
def record(lm: "LM", sites: Iterable[Site], *, stop: bool = False, grad: bool = False) -> Generator[Recording]:
    """Record activations during the forward passes of the `with` block; the last pass wins.

    Args:
        lm: the model.
        sites: what to record.
        stop: end the forward pass, and with it the `with` block, once every site was seen.
        grad: keep them in the computation: `torch.autograd.grad(logits[...], seen[site])` is then the gradient of a
            logit. Where the weights need no gradients, the recorded activations do.

    Raises:
        SettingError: `grad` where PyTorch keeps no gradients (`torch.no_grad`, `torch.inference_mode`).
        LayerNeverRan: the block ended without an exception, but a site was never reached.
    """
    require_lm(lm)
    wanted = require_each(sites, Site, "sites")
    if grad and not torch.is_grad_enabled():
        raise SettingError("record(grad=True) needs gradients; leave torch.no_grad() or torch.inference_mode() out.")
    seen = Recording(grad=grad)

    def listener(site: Site) -> Change:
        def keep(tensor: Tensor) -> Tensor:
            going_on = seen.store(site, tensor)
            if stop and len(seen) == len(wanted):
                raise _Stop
            return going_on

        return keep

    try:
        with ExitStack() as stack:
            for site in wanted:
                stack.enter_context(_changing(lm, site, listener(site)))
            yield seen
    except _Stop:
        return
    missing = [site for site in wanted if site not in seen]
    if missing:
        raise _never_ran(missing)


@contextmanager
def patch(lm: "LM", changes: Mapping[Site, Change]) -> Generator[None]:
    """Replace activations during the forward passes of the `with` block.

    Args:
        lm: the model.
        changes: for each site a function from the activation [batch pos width] to its replacement, same shape.

    Raises:
        LayerNeverRan: the block ended without an exception, but a site was never reached.
    """
    require_lm(lm)
    require(changes, Mapping, "changes")
    require_each(list(changes), Site, "changes")
    ran: set[Site] = set()

    def noticed(site: Site, change: Change) -> Change:
        def apply(tensor: Tensor) -> Tensor:
            ran.add(site)
            return change(tensor)

        return apply

    with ExitStack() as stack:
        for site, change in changes.items():
            stack.enter_context(_changing(lm, site, noticed(site, change)))
        yield
    missing = [site for site in changes if site not in ran]
    if missing:
        raise _never_ran(missing)


@contextmanager
def on_block_input(lm: "LM", layer: int, change: Change) -> Generator[None]:
    """Replace what enters a block, [batch pos d_model]; the batch may grow (BLOOM's alibi bias grows with it)."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            hidden = change(args[0])
            args = (hidden, *args[1:])
        else:
            hidden = change(kwargs["hidden_states"])
            kwargs = {**kwargs, "hidden_states": hidden}
        alibi = kwargs.get("alibi")
        if isinstance(alibi, Tensor) and alibi.ndim == 3:
            kwargs = {**kwargs, "alibi": _grown(alibi, hidden.shape[0] * lm.n_heads)}
        return args, kwargs

    handle = lm.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_output(
    lm: "LM", name: str, change: Callable[[Tensor, Tensor], Tensor], *, first: bool = False
) -> Generator[None]:
    """Replace what a module gives out, knowing what entered it: how an edit acts beside the model.

    Args:
        lm: the model.
        name: path of the module in the model, such as "transformer.h.17.mlp.c_proj" or "transformer.h.17".
        change: from the input [batch pos in] and the output [batch pos out] to the new output.
        first: act before all that changes the same output.
    """
    rows: list[int] = []

    def on_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows[:] = [(args[0] if args else kwargs["hidden_states"]).shape[0]]

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        made: Tensor = output[0] if isinstance(output, tuple) else output
        if made.ndim == 3:
            new = change(inputs, made)
        else:  # OPT's MLP works on [batch*pos width]
            seen, flat = (x.view(rows[0], -1, x.shape[-1]) for x in (inputs, made))
            new = change(seen, flat).view_as(made)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    head, module = f"{lm.layout.blocks}.", lm.model.get_submodule(name)
    with ExitStack() as stack:
        if name.startswith(head) and name.count(".") > head.count("."):
            block = lm.blocks[int(name.removeprefix(head).partition(".")[0])]
            stack.callback(block.register_forward_pre_hook(on_block, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after, with_kwargs=True, prepend=first).remove)
        yield


@contextmanager
def contiguous_input(module: nn.Module | None) -> Generator[None]:
    """Let a linear module see contiguous inputs only.

    PyTorch multiplies a slice of positions by a weight that needs no gradient as one matrix per row, with a copy of the
    weight for each: for an unembedding that is 20 times slower than one product.
    """
    if module is None:
        yield
        return

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def fused_activations(model: nn.Module) -> Generator[None]:
    """Let GPT-2's tanh GELU run as one kernel, not as eight, during the `with` block; equal within rounding."""
    found = [module for module in model.modules() if type(module).__name__ in _TANH_GELUS]
    with ExitStack() as stack:
        for module in found:
            stack.enter_context(_forward_as(module, lambda x: nn.functional.gelu(x, approximate="tanh")))
        yield


@contextmanager
def skipping(blocks: Iterable[nn.Module], *, as_tuple: bool) -> Generator[None]:
    """Let blocks hand their input on unchanged, at no cost, during the `with` block."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_shadowed(block, as_tuple))
        yield


@contextmanager
def rows_of_last_position(lm: "LM", layer: int) -> Generator[None]:
    """Let a block's output projections and MLP work on the last position only.

    Their results broadcast over the other positions, whose states become meaningless: for the last block, when only
    the last position's logits are read.
    """

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, -1:], *args[1:])

    block = lm.blocks[layer]
    with ExitStack() as stack:
        for module in (lm.attn_out(layer), _mlp_entry(lm, block)):
            handle = module.register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        yield


def _mlp_entry(lm: "LM", block: nn.Module) -> nn.Module:
    """Return the module through which states enter the MLP: the parent of its output projection."""
    return block.get_submodule(lm.layout.mlp_out.rpartition(".")[0])


@contextmanager
def _shadowed(block: nn.Module, as_tuple: bool) -> Generator[None]:
    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor, None]:
        return (hidden_states, None) if as_tuple else hidden_states

    with _forward_as(block, forward):
        yield


@contextmanager
def _forward_as(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Let a module compute something else; what others put in the same place (accelerate does) comes back."""
    had = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if had is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = had


@contextmanager
def _changing(lm: "LM", site: Site, change: Change) -> Generator[None]:
    """Apply `change` at one site, whatever the family hands around there."""
    module = lm.module(site)
    shape: list[int] = []

    def on_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        shape[:] = hidden.shape[:2]

    def unflattened(tensor: Tensor) -> Tensor:
        """OPT's MLP works on [batch*pos width]: show [batch pos width] and flatten again."""
        if tensor.ndim == 3:
            return change(tensor)
        return change(tensor.view(-1, shape[1], tensor.shape[-1])).reshape(tensor.shape)  # rows may have joined since

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (unflattened(args[0]), *args[1:])

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (unflattened(output[0]), *output[1:])
        return unflattened(output)

    with ExitStack() as stack:
        if site.kind in ("mlp", "key"):
            handle = lm.blocks[site.layer].register_forward_pre_hook(on_block, with_kwargs=True)
            stack.callback(handle.remove)
        handle = module.register_forward_pre_hook(before) if site.kind == "key" else module.register_forward_hook(after)
        stack.callback(handle.remove)
        yield


def _grown(alibi: Tensor, rows: int) -> Tensor:
    return alibi if alibi.shape[0] == rows else alibi.repeat(rows // alibi.shape[0], 1, 1)


def _never_ran(sites: list[Site]) -> LayerNeverRan:
    names = ", ".join(str(site) for site in sites)
    return LayerNeverRan(
        f"The forward pass never reached: {names}. Was the model called inside the `with` block? "
        f"An exception inside it, or another hook that stopped the pass earlier, has the same effect."
    )
