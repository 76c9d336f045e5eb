# %% [markdown]
# # From a folder of photographs to a page that searches them
#
# Your folder holds images and a `metadata.jsonl`, a line for each image:
# `{"file_name": "beach/0001.jpg", "captions": ["two dogs run along the beach"]}`.
# Run this from the root of the repository; it takes minutes on two cores.

# %%
import json
from pathlib import Path

from hf_vse import GalleryIndex, load_encoder, load_pairs, read_recipe, run_recipe

PHOTOGRAPHS = None  # your folder; None draws one of scenes
START = None  # such as "openai/clip-vit-base-patch32"; None trains a small network, without a download
OUTPUT = Path("runs/examples/own_photographs")
SCENES = 600

# %% Photographs to try it with
if PHOTOGRAPHS is None:
    PHOTOGRAPHS = OUTPUT / "photographs"
    PHOTOGRAPHS.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(load_pairs("scenes", num_train=SCENES, num_eval=40)["train"]):
        scene["image"].save(PHOTOGRAPHS / f"{number:04d}.png")
        line = {"file_name": f"{number:04d}.png", "captions": scene["captions"], "year": 2000 + number % 20}
        lines.append(json.dumps(line))
    (PHOTOGRAPHS / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")

# %% Train. A tenth of the photographs is held out, with the near-duplicates of each other kept together
data = {"dataset": "imagefolder", "data_dir": str(PHOTOGRAPHS), "output_dir": str(OUTPUT / "model")}
if START is None:
    recipe = read_recipe("scripts/examples/small.yaml", validation_share=0.1, **data)
else:
    recipe = read_recipe("scripts/recipes/own_photos.yaml", init_from=START, **data)
record = run_recipe(recipe)
print({name: round(value, 1) for name, value in record["metrics"]["validation"]["metrics"].items()})

# %% Search. Built again, a gallery encodes only what is new
encoder = load_encoder(str(OUTPUT / "model"))
gallery = GalleryIndex.build(PHOTOGRAPHS, encoder, OUTPUT / "gallery")
scores, items = gallery.search(encoder.query("a red star on the left"), k=5, model=encoder, where=["year>=2010"])
for score, item in zip(scores[0], items[0], strict=True):
    print(f"{score:.2f}  {item['file']}  {item['captions'][0]}")

# %% The page
print(f"hf-vse demo {OUTPUT / 'gallery'}")
