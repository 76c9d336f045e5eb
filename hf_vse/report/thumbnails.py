"""Images of a split as small JPEGs inside the page."""

from base64 import b64encode
from functools import lru_cache
from io import BytesIO

from datasets import Dataset
from PIL import Image

from hf_vse.data.images import BrokenImageError, decode_image
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import IMAGE

SIDE = 144  # pixels of the longer side
QUALITY = 78  # of the JPEG


class Thumbnails:
    """Args: dataset: the split with its column `image`."""

    def __init__(self, dataset: Dataset):
        self.images = undecoded_images(dataset)
        self.of = lru_cache(maxsize=4096)(self.draw)

    def draw(self, row: int) -> str:
        """The image in a row of the data set as a `data:` address, empty where it cannot be read."""
        try:
            image = decode_image(self.images[row][IMAGE], needed=SIDE)
        except BrokenImageError:
            return ""
        return address_of(image)


def address_of(image: Image.Image, side: int = SIDE) -> str:
    """The image, small, as a `data:` address."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    small.save(file, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
