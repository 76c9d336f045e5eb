"""Where galleries are: one function opens a store from its location.

my_index                                          a folder
milvus://host:19530/photos                        Milvus, also milvus+tls:// and milvus+lite://; see `milvus.py`
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
    if not is_engine(location):
        return FolderStore(location)
    scheme = str(location).partition("://")[0]
    if scheme in ("milvus", "milvus+tls", "milvus+lite"):
        from hf_vse.search.milvus import MilvusStore

        return MilvusStore(str(location))
    if scheme == "postgresql":
        from hf_vse.search.pgvector import PgVectorStore

        return PgVectorStore(str(location))
    raise ValueError(
        f"{scheme}:// is of no known kind: give a folder, milvus://HOST:PORT/NAME or postgresql://HOST/DATABASE/NAME"
    )


def is_engine(location: str | Path) -> bool:
    return "://" in str(location)


def absolute_location(location: str) -> str:
    """The same location for a process that runs in another folder."""
    return location if is_engine(location) else str(Path(location).absolute())
