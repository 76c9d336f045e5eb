# %% [markdown]
# # Three objectives, trained alike and compared
#
# Only the objective differs. Several seeds belong to a real comparison: see `scripts/reproduce_table.py`, which trains
# grids, and `scripts/docs/pages/results.md`. Run this from the root of the repository; it takes minutes on two cores.

# %%
from hf_vse import read_recipe, run_recipe
from hf_vse.evaluation.tables import recall_table

OUTPUT = "runs/examples/objectives"
SCENES = {"dataset": "scenes", "num_train": 1200, "num_eval": 300}
OBJECTIVES = {
    "nce": {},
    "hardnce": {"hard_negative_warmup_epochs": 1},  # the hardest negative alone hardly learns from scratch
    "siglip": {"logit_bias_init": -5},
}

# %% Train; the same cell again continues what was interrupted
rows = {}
for name, fields in OBJECTIVES.items():
    options = SCENES | fields | {"loss_type": name, "output_dir": f"{OUTPUT}/{name}"}
    record = run_recipe(read_recipe("scripts/examples/small.yaml", **options))
    rows[name] = record["metrics"]["test"]["metrics"]

# %% R@1, R@5, R@10 in percent and the median rank in both directions; rsum is the sum of the recalls
print(recall_table(rows))
