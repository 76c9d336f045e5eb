# %% [markdown]
# # Search with any model: two functions are an encoder
#
# This one knows nothing but colours, to show that a model is no more than two functions into one space. With a class
# in a file of yours, `hf-vse index my_photos my_index --model my_encoder.py:Colours` does the same.

# %%
import numpy as np

from hf_vse import Encoder, GalleryIndex, load_pairs

OUTPUT = "runs/examples/colours"
SCENES = {"num_train": 40, "num_eval": 200}
COLOURS = {
    "red": (214, 39, 40), "green": (35, 139, 53), "blue": (48, 95, 214), "yellow": (250, 204, 21),
    "purple": (118, 58, 200), "black": (24, 24, 30),
}  # fmt: skip
VALUES = np.array(list(COLOURS.values()))


class Colours(Encoder):
    name = "colours"

    def encode_images(self, images):  # RGB PIL images -> (images, colours): how much of each there is
        pixels = [np.asarray(image.resize((16, 16))).reshape(-1, 1, 3) for image in images]
        near = [np.linalg.norm(each - VALUES, axis=2) < 60 for each in pixels]
        return np.stack([each.mean(axis=0) + 1e-3 for each in near])

    def encode_texts(self, texts):  # strings -> (texts, colours): which are named
        return np.array([[text.lower().split().count(colour) + 1e-3 for colour in COLOURS] for text in texts])


# %% A gallery of a data set; of a folder it is the same
encoder = Colours()
gallery = GalleryIndex.build(load_pairs("scenes", **SCENES)["test"], encoder, OUTPUT)
scores, items = gallery.search(encoder.query("a yellow rhombus and a red square"), k=3, model=encoder)
for score, item in zip(scores[0], items[0], strict=True):
    print(f"{score:.2f}  {item['captions'][1]}")
