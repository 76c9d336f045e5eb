# %% [markdown]
# # Write an objective
#
# A row loss is a function of the scores of some queries: it returns one loss for each. Both directions, masks, chunks,
# gradient caching and several processes come from the package. Run this from the root of the repository.

# %%
from pathlib import Path

import torch

from hf_vse import contrastive_loss, load_objective, read_recipe, run_recipe

OUTPUT = Path("runs/examples/focal")
SCENES = {"dataset": "scenes", "num_train": 1200, "num_eval": 300}
SOURCE = '''
"""Focal NCE: pairs that are right already count less."""


def focal(scores, positives, excluded, *, temperature, sharpness=1.0):
    """(1 - q)^sharpness * -log q, with q the softmax of the positive."""
    logits = scores / temperature
    if excluded is not None:  # candidates that are no negatives: other captions of the image, equal captions
        logits = logits.masked_fill(excluded, float("-inf"))
    log_q = logits.log_softmax(dim=1).gather(1, positives[:, None]).squeeze(1)
    return -((1 - log_q.exp()) ** sharpness) * log_q
'''

# %% In a file of its own: its name and digest become part of the model
OUTPUT.mkdir(parents=True, exist_ok=True)
(OUTPUT / "focal.py").write_text(SOURCE, encoding="utf-8")
loss_type = load_objective(str(OUTPUT / "focal.py:focal"))

# %% Check it on numbers: identical vectors are a guess among four, and both directions are added
same = torch.ones(4, 2) / 2**0.5
q = 1 / 4
expected = 2 * (1 - q) * -torch.tensor(q).log()
found = contrastive_loss(same, same, loss_type=loss_type, temperature=0.1)
assert torch.isclose(found, expected), (found, expected)

# %% Train with it
options = SCENES | {"loss_type": str(OUTPUT / "focal.py:focal"), "output_dir": str(OUTPUT / "model")}
record = run_recipe(read_recipe("scripts/examples/small.yaml", **options))
print(record["loss_type"], round(record["metrics"]["test"]["metrics"]["rsum"], 1))
