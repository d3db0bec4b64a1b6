"""Leaving out what a result does not need: whole blocks, or all positions but the last."""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from engram.models.lm import LM


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

    with forward_as(block, forward):
        yield


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
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
