"""Settings of the demo from environment variables, checked before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants


class SettingsError(ValueError):
    """An invalid setting; the message is one line with the remedy."""


@dataclass(frozen=True)
class Settings:
    """One field per variable.

    Args:
        model: VSE_MODEL, a Hub id or a directory.
        dataset: VSE_DATASET, a Hub id, a parquet file, an image folder, or a folder of `save_to_disk`.
        split: VSE_SPLIT; default: validation, else test, else train.
        compare: VSE_COMPARE, a second model; default: no comparison.
        max_images: VSE_MAX_IMAGES, photographs in the gallery.
        title: VSE_TITLE, the heading of the page.
        cache_dir: folder for cached embeddings; inside the Hugging Face cache.
    """

    model: str
    dataset: str
    split: str | None = None
    compare: str | None = None
    max_images: int = 5000
    title: str = "Photographs and sentences"
    cache_dir: Path = field(default_factory=lambda: Path(constants.HF_HOME) / "vse_demo")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Reads the variables; SettingsError names a missing or invalid one."""
        given = {name: value.strip() for name, value in environment.items() if name.startswith("VSE_")}
        given = {name: value for name, value in given.items() if value}
        if "VSE_MODEL" not in given:
            raise SettingsError("VSE_MODEL is not set: give the Hub id or the directory of a model")
        if "VSE_DATASET" not in given:
            raise SettingsError(
                "VSE_DATASET is not set: give a Hub data set, a parquet file or an image folder with captions"
            )
        limit = given.get("VSE_MAX_IMAGES", str(cls.max_images))
        if not limit.isdecimal() or int(limit) < 1:
            raise SettingsError(f"VSE_MAX_IMAGES={limit!r} is not a number of photographs; give 1 or more")
        return cls(
            model=given["VSE_MODEL"],
            dataset=given["VSE_DATASET"],
            split=given.get("VSE_SPLIT"),
            compare=given.get("VSE_COMPARE"),
            max_images=int(limit),
            title=given.get("VSE_TITLE", cls.title),
        )

    @property
    def local_paths(self) -> list[str]:
        """Files and folders of this machine that the page must never serve."""
        named = (self.model, self.compare, self.dataset)
        return [str(Path(name).resolve()) for name in named if name and Path(name).exists()] + [str(self.cache_dir)]
