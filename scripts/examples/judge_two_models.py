# %% [markdown]
# # Two models on the same images: which one is better, and is it chance?
#
# Any two models that `load_encoder` opens: of this package, of transformers, sentence-transformers or open_clip.
# These two are left by `compare_objectives.py`. Run this from the root of the repository.

# %%
from hf_vse import judge, load_encoder, load_pairs
from hf_vse.evaluation.intervals import compare_models
from hf_vse.evaluation.tables import recall_table

MODELS = ("runs/examples/objectives/nce", "runs/examples/objectives/hardnce")
SCENES = {"num_train": 1200, "num_eval": 300}

# %% Judge: each image and caption is encoded once
test = load_pairs("scenes", **SCENES)["test"]
judged = {name: judge(load_encoder(name), test, source="scenes", split="test") for name in MODELS}
print(recall_table({name: each.record["metrics"] for name, each in judged.items()}))

# %% Compare: the same images ask both models; p is that of a randomisation test
first, second = judged.values()
found = compare_models(first.ranks, second.ranks, first.pairs.text_to_image)
for metric in ("i2t_r1", "t2i_r1", "rsum"):
    each = found[metric]
    low, high = each["interval"]
    print(f"{metric}: {each['difference']:+.1f}, 95 % from {low:+.1f} to {high:+.1f}, p = {each['p_value']:.3f}")

# %% Why: what else the record holds, as a page
print(f"hf-vse evaluate {' '.join(MODELS)} --foils --report runs/examples/report")
