"""A model that this package has never seen, in ten lines, and what the drivers do for it."""

import numpy as np
import pytest
import torch

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.embed.store import Store
from hf_vse.evaluation.evaluator import embed_pairs
from tests.conftest import make_pairs


class Colours(Encoder):
    """Images by their mean colour, sentences by their letters."""

    name = "colours"

    def __init__(self, stop_before: int | None = None):
        self.images_seen, self.texts_seen, self.stop_before = 0, 0, stop_before

    def encode_images(self, images):
        if self.stop_before is not None and self.images_seen >= self.stop_before:
            raise KeyboardInterrupt
        self.images_seen += len(images)
        return np.stack([np.asarray(image, np.float64).mean((0, 1)) for image in images])

    def encode_texts(self, texts):
        if self.stop_before is not None and self.texts_seen >= self.stop_before:
            raise KeyboardInterrupt
        self.texts_seen += len(texts)
        return torch.tensor([[text.count(letter) + 0.5 for letter in "aei"] for text in texts], requires_grad=True)


def one_at_a_time(dataset) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    encoder = Colours()
    images = [torch.from_numpy(encoder.encode_images([image])[0]) for image in dataset["image"]]
    texts = [encoder.encode_texts([text])[0].detach() for captions in dataset["captions"] for text in captions]
    owner = [row for row, captions in enumerate(dataset["captions"]) for _ in captions]
    return (
        torch.stack([each / each.norm() for each in images]).float(),
        torch.stack([each / each.norm() for each in texts]),
        owner,
    )


def test_own_encoder_gives_unit_vectors_with_their_correspondence():
    dataset = make_pairs(7, captions=3)
    pairs = embed_pairs(Colours(), dataset, batch_size=3, progress=False)
    images, texts, owner = one_at_a_time(dataset)
    torch.testing.assert_close(pairs.image_embeds, images)
    torch.testing.assert_close(pairs.text_embeds, texts)
    assert pairs.text_to_image.tolist() == owner and not pairs.text_embeds.requires_grad


def test_interrupted_images_are_continued_and_not_encoded_again(tmp_path):
    rows = [{"image": image} for image in make_pairs(10)["image"]]
    rows[3] = {"image": {"bytes": b"broken", "path": None}}
    whole = encode_images(Colours(), rows, batch_size=2)
    interrupted, rest, later = Colours(stop_before=5), Colours(), Colours()
    with pytest.raises(KeyboardInterrupt):
        encode_images(interrupted, rows, batch_size=2, store=Store(tmp_path))
    assert interrupted.images_seen == 5
    for encoder, seen in ((rest, 9 - 5), (later, 0)):
        found = encode_images(encoder, rows, batch_size=2, store=Store(tmp_path))
        assert torch.equal(found.embeds, whole.embeds) and torch.equal(found.readable, whole.readable)
        assert encoder.images_seen == seen
    assert whole.readable.tolist() == [row != 3 for row in range(10)]
    assert (whole.embeds[3] == 0).all() and whole.embeds[whole.readable].norm(dim=1).allclose(torch.ones(9))


def test_interrupted_sentences_are_continued_and_not_encoded_again(tmp_path):
    texts = [text for captions in make_pairs(4)["captions"] for text in captions]
    whole = encode_texts(Colours(), texts, batch_size=3)
    interrupted, rest = Colours(stop_before=9), Colours()
    with pytest.raises(KeyboardInterrupt):
        encode_texts(interrupted, texts, batch_size=3, store=Store(tmp_path))
    done = interrupted.texts_seen
    assert 0 < done < len(texts)
    assert torch.equal(encode_texts(rest, texts, batch_size=3, store=Store(tmp_path)), whole)
    assert rest.texts_seen == len(texts) - done


def test_encoder_that_gives_too_few_vectors_is_named():
    class Mean(Colours):
        def encode_texts(self, texts):
            return super().encode_texts(texts).mean(dim=0)

    with pytest.raises(ValueError, match=r"colours gave an array of shape \(3,\) for 2 inputs"):
        encode_texts(Mean(), ["red", "blue"])
