"""Reading and changing what flows through a model: `record` and `patch`.

Hooks live exactly as long as their `with` block, whatever ends it.

    with record(lm, [Site("mlp", 17)], stop=True) as seen:
        lm.forward(ids)
    seen[Site("mlp", 17)]                                   # [batch pos d_model]

    with patch(lm, {Site("mlp", 17): lambda x: x * 0}):
        lm.next_tokens("The Space Needle is in")
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engram.errors import LayerNeverRan, SettingError
from engram.given import require, require_each, require_lm
from engram.models.sites import WHOLE, Site, place_of, require_added, view_of
from engram.showing import Shown, short

if TYPE_CHECKING:
    from engram.models.lm import LM

Activation = Float[Tensor, "batch pos width"]
Change = Callable[[Tensor], Tensor]


class _Stop(Exception):
    """Raised inside a forward pass to end it, caught by the `with` block that asked for it."""


class Recording(Shown, Mapping[Site, Tensor]):
    """What `record` saw: one tensor per site, [batch pos width] (of `heads` [batch pos head d_head]).

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

    def store(self, site: Site, tensor: Tensor) -> Tensor | None:
        """Keep a copy, for some families change activations in place; return what the pass goes on with, if another."""
        if not self._grad:
            self._tensors[site] = tensor.detach().clone()
            return None
        kept = tensor.clone() if tensor.requires_grad else tensor.detach().requires_grad_()  # a norm's input goes round
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
    require_added(lm, wanted)
    with listening(lm, wanted, stop=stop, grad=grad) as seen:
        yield seen


@contextmanager
def listening(lm: "LM", wanted: Sequence[Site], *, stop: bool = False, grad: bool = False) -> Generator[Recording]:
    """Record as `record` does, whatever is asked."""
    seen = Recording(grad=grad)

    def listener(site: Site) -> Callable[[Tensor], Tensor | None]:
        def keep(tensor: Tensor) -> Tensor | None:
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
    require_added(lm, require_each(list(changes), Site, "changes"))
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
    head, module = f"{lm.layout.blocks}.", lm.model.get_submodule(name)
    inside = name.startswith(head) and name.count(".") > head.count(".")

    with ExitStack() as stack:
        layer = int(name.removeprefix(head).partition(".")[0]) if inside else None
        folded = stack.enter_context(_folding(lm, layer))

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
            made: Tensor = output[0] if isinstance(output, tuple) else output
            new = change(inputs, made) if made.ndim == 3 else change(folded(inputs), folded(made)).view_as(made)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        stack.callback(module.register_forward_hook(after, with_kwargs=True, prepend=first).remove)
        yield


@contextmanager
def _changing(lm: "LM", site: Site, change: Callable[[Tensor], Tensor | None]) -> Generator[None]:
    """Apply `change` at one site, whatever the family hands around there."""
    (module, place), view = place_of(lm, site), view_of(lm, site)
    with ExitStack() as stack:
        folded = stack.enter_context(_folding(lm, None if site.kind in WHOLE else site.layer))

        def changed(tensor: Tensor) -> Tensor:
            shown = folded(tensor)
            new = change(view.seen(shown))
            if new is None:
                return tensor
            made = view.put(shown, new)
            return made if tensor.ndim == 3 else made.reshape(tensor.shape)  # rows may join where blocks meet

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (changed(args[0]), *args[1:])

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

        hooked = (
            module.register_forward_hook(after) if place.side == "out" else module.register_forward_pre_hook(before)
        )
        stack.callback(hooked.remove)
        yield


@contextmanager
def _folding(lm: "LM", layer: int | None) -> Generator[Change]:
    """Give out a function that shows [batch*pos width], which OPT's MLP works on, as [batch pos width]."""
    positions: list[int] = []  # rows may join on the way, positions do not

    def on_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions[:] = [(args[0] if args else kwargs["hidden_states"]).shape[1]]

    def unfolded(tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim == 3 else tensor.view(-1, positions[0], tensor.shape[-1])

    if layer is None:
        yield unfolded
        return
    handle = lm.blocks[layer].register_forward_pre_hook(on_block, with_kwargs=True)
    try:
        yield unfolded
    finally:
        handle.remove()


def _grown(alibi: Tensor, rows: int) -> Tensor:
    return alibi if alibi.shape[0] == rows else alibi.repeat(rows // alibi.shape[0], 1, 1)


def _never_ran(sites: list[Site]) -> LayerNeverRan:
    names = ", ".join(str(site) for site in sites)
    return LayerNeverRan(
        f"The forward pass never reached: {names}. Was the model called inside the `with` block? "
        f"An exception inside it, or another hook that stopped the pass earlier, has the same effect."
    )
