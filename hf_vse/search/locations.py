"""Where galleries are: one function opens a store from its location.

my_index                              a folder
"""

from pathlib import Path

from hf_vse.search.folder_store import FolderStore
from hf_vse.search.store import GalleryStore


def open_store(location: str | Path) -> GalleryStore:
    """The gallery at a location; nothing is read or reached yet.

    Raises:
        ValueError: the location is not of a kind that is known.
        ImportError: the package that talks to the engine is missing.
    """
    if is_engine(location):
        raise ValueError(f"{location} is not a kind of gallery that is known: give a folder")
    return FolderStore(location)


def is_engine(location: str | Path) -> bool:
    return "://" in str(location)


def absolute_location(location: str) -> str:
    """The same location for a process that runs in another folder."""
    return location if is_engine(location) else str(Path(location).absolute())
