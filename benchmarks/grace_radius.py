"""How far GRACE's keys lie apart: a prompt's from its paraphrases' and from its neighbors', layer by layer.

    python benchmarks/grace_radius.py mini mini --skip 60 --limit 30 --layers 1,3,5,7,9

A radius is worth something where paraphrases are nearer than neighbors. The last columns name the radius for which
the share of paraphrases within it exceeds the share of neighbors by most.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

import engram
from engram.editing.methods.grace import PLACES
from engram.editing.parts.outputs import linear_in
from engram.models import LM
from engram.models.hooks import on_output


def keys(lm: LM, module: str, prompts: Sequence[str]) -> Tensor:
    """What enters a module at the last token of prompts: [prompt in]."""
    found: list[Tensor] = []

    def keep(inputs: Tensor, outputs: Tensor) -> Tensor:
        found.append(inputs[:, -1].float().cpu())
        return outputs

    encoded = lm.encode(prompts, padding_side="left")
    with torch.no_grad(), on_output(lm, module, keep):
        lm.forward(encoded.ids, mask=encoded.mask, keep=1)
    return found[0]


def best_radius(near: Tensor, far: Tensor) -> str:
    """The radius that takes in most of what should be near and least of what should not, with both shares."""
    radii = torch.cat([near, far]).sort().values
    within = [(float((near <= radius).float().mean()), float((far <= radius).float().mean())) for radius in radii]
    i = max(range(len(within)), key=lambda i: within[i][0] - within[i][1])
    wanted, not_wanted = within[i]
    return f"{radii[i]:.1f} | {wanted:.0%} | {not_wanted:.0%}" if wanted > not_wanted else "none | |"


def main() -> None:
    """Print a table row for each layer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--layers", required=True)
    given = parser.parse_args()
    lm = engram.load(given.model)
    cases = list(engram.datasets.load(given.data, limit=given.skip + given.limit))[given.skip :]
    place = PLACES.get(lm.config.model_type, lm.layout.mlp_out)
    print("| layer | paraphrases | neighbors | best radius | paraphrases in it | neighbors in it |")
    print("|---" * 6 + "|")
    for layer in map(int, given.layers.split(",")):
        module = linear_in(lm, layer, place)
        near, far = list[Tensor](), list[Tensor]()
        for case in cases:
            found = keys(lm, module, [case.fact.text, *case.paraphrases, *case.neighborhood])
            distances = (found[1:] - found[0]).norm(dim=1)
            near.append(distances[: len(case.paraphrases)])
            far.append(distances[len(case.paraphrases) :])
        para, others = torch.cat(near), torch.cat(far)
        print(f"| {layer} | {_spread(para)} | {_spread(others)} | {best_radius(para, others)} |")


def _spread(distances: Tensor) -> str:
    low, middle, high = distances.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
