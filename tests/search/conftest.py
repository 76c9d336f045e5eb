"""Stores of galleries: a folder and, where their packages are installed, the engines."""

from itertools import count

import pytest

STORES = ("folder", "milvus")
NUMBERS = count()


@pytest.fixture(scope="session")
def milvus(tmp_path_factory) -> str:
    """Milvus embedded in this process."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    return f"milvus+lite://{tmp_path_factory.mktemp('milvus') / 'galleries.db'}"


def place_in(request, kind: str) -> str:
    """A location that no other test has."""
    if kind == "folder":
        return str(request.getfixturevalue("tmp_path") / "index")
    return f"{request.getfixturevalue(kind)}/gallery_{next(NUMBERS)}"


@pytest.fixture(params=STORES)
def location(request) -> str:
    """Of a gallery that is not there yet, in every kind of store."""
    return place_in(request, request.param)


@pytest.fixture(params=STORES[1:])
def engine(request) -> str:
    """The same in every engine."""
    return place_in(request, request.param)
