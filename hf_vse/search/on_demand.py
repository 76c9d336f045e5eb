"""The text tower of a gallery for sentences, and its model for photographs, opened when the first one comes."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_vse.search.text_tower import TextTower

if TYPE_CHECKING:  # sentences are answered without them
    from hf_vse.embed.encoder import Encoder


class ModelOnDemand:
    """What searching asks of an `Encoder`; threads may share it.

    Args:
        tower: see `open_text_tower`.
        open_model: opens the model that made the gallery; called again only where it failed.
    """

    def __init__(self, tower: TextTower, open_model: "Callable[[], Encoder]"):
        self.tower, self.open_model = tower, open_model
        self.name, self.digest = tower.name, tower.digest
        self.opening = Lock()
        self.opened: Encoder | None = None

    def model(self) -> "Encoder":
        """The model, opened now if it was not. Raises what `open_model` raises."""
        with self.opening:
            if self.opened is None:
                self.opened = self.open_model()
        return self.opened

    @property
    def reads_images(self) -> bool:
        return self.model().reads_images

    @property
    def needed_side(self) -> int | None:
        return self.model().needed_side

    def query(
        self, text: str | Sequence[str] | None = None, image: Any = None, image_weight: float = 0.5
    ) -> np.ndarray:
        """As `Encoder.query`: of sentences by the tower, of an image, and of one with sentences, by the model."""
        return self.tower.query(text or "") if image is None else self.model().query(text, image, image_weight)
