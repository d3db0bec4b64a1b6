"""The two optimizers of training behind one verb.

Notable: Muon (orthogonalised momentum) trains the matrices inside the blocks, AdamW the embeddings, biases and norms.
In short, uncontrolled trials the loss fell in fewer steps than with AdamW alone.
"""

import torch
from transformers import GPT2LMHeadModel

from engram.mini.recipe import Recipe, learning_rate


class Optimizers:
    """Muon for the matrices inside the blocks, AdamW for everything else."""

    def __init__(self, model: GPT2LMHeadModel, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        inside = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
        known = {id(weight) for weight in inside}
        others = [weight for weight in model.parameters() if id(weight) not in known]
        muon = torch.optim.Muon(
            inside, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.members: tuple[torch.optim.Optimizer, ...] = (muon, adamw)

    def step(self, step: int) -> None:
        """Clip the gradients, apply them at the learning rate of `step`, and clear them."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self.members:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, step)
            optimizer.step()
            optimizer.zero_grad()
