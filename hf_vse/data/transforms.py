"""Training augmentation without torchvision: a random resized crop and a random horizontal flip.

After Szegedy et al. (arXiv 1409.4842), as in VSE++ and the paper. Rescaling and normalisation are left to the image
processor, which is the same in training and evaluation.
"""

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
from transformers import ImageProcessingMixin

ASPECT_RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = 10


def input_size(image_processor: ImageProcessingMixin) -> tuple[int, int] | None:
    """Height and width of the images that the processor gives to the model; None if it keeps their aspect ratio."""
    settings = image_processor.to_dict()
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    size = dict(size or {})
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    if "max_num_patches" in settings:
        return None
    raise ValueError(f"the image processor has no fixed input size: {settings.get('size')}; set height and width")


def needed_side(image_processor: ImageProcessingMixin) -> int | None:
    """Largest size in pixels that the processor resizes the shorter side to; None if it does not resize."""
    settings = image_processor.to_dict()
    sides = [side for side in dict(settings.get("size") or {}).values() if isinstance(side, int)]
    return max(sides) if sides and settings.get("do_resize") else None


def random_box(
    width: int, height: int, min_scale: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random crop with at least `min_scale` of the area; the whole if none fits."""
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = int(rng.integers(width - box_width + 1)), int(rng.integers(height - box_height + 1))
            return left, top, left + box_width, top + box_height
    return 0, 0, width, height


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a training image, applied before the image processor.

    Args:
        min_scale: smallest share of the area that a random crop keeps; 1.0 means no random crop.
        mirror: flip half of the images horizontally. Wrong if captions mention left and right.
    """

    min_scale: float = 0.08
    mirror: bool = True

    @property
    def crops(self) -> bool:
        return self.min_scale < 1.0

    def __call__(
        self, image: PIL.Image.Image, size: tuple[int, int] | None, rng: np.random.Generator
    ) -> PIL.Image.Image:
        """Args: an RGB image; `size`, height and width of a random crop, None for its own; the random generator."""
        if self.crops:
            box = random_box(*image.size, self.min_scale, rng)
            if size is None:
                image = image.crop(box)
            else:
                image = image.resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC, box=box)
        if self.mirror and rng.random() < 0.5:
            image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return image
