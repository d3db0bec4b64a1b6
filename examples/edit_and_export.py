"""Write a fact, look at what it did, keep it, put it into the weights and take it back, hand it to other libraries.

    python examples/edit_and_export.py

Writes into engram-examples/.
"""

import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import engram
from engram.mini import weights_folder

OUT = Path("engram-examples/edit")
PROMPT = "The Space Needle is located in the city of"

lm = engram.load("mini")
fact = engram.Fact("Space Needle", "The {} is located in the city of", "Rome", original="Seattle")
edit = engram.edit(lm, fact)  # a value; the model is unchanged
print(edit.describe())
print(engram.check(lm, edit))

# Keep it: JSON and safetensors, a few kilobytes.
edit.save(OUT / "needle")
edit = engram.Edit.load(OUT / "needle", lm)

# For a while.
with edit.applied(lm):
    print("beside the weights: ", lm.generate(PROMPT, max_new_tokens=5))
print("after the block:    ", lm.generate(PROMPT, max_new_tokens=5))

# In the weights, and back, bit for bit.
before = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
edit.apply_(lm)
print("in the weights:     ", lm.generate(PROMPT, max_new_tokens=5))
edit.revert_(lm)
assert all(torch.equal(weight, before[name]) for name, weight in lm.model.named_parameters())

# For others: a LoRA adapter that PEFT loads without Engram. Exports want a new folder.
with tempfile.TemporaryDirectory() as folder:
    adapter = edit.export("peft", Path(folder) / "lora")
    base = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, adapter).eval()
    ids = lm.encode(PROMPT).ids
    with torch.no_grad(), edit.applied(lm):
        difference = float((theirs(ids).logits - lm.forward(ids)).abs().max())
    print(f"as a LoRA adapter: largest difference of the logits {difference:.1e}")
    assert difference < 1e-3
