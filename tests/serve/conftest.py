"""A tiny gallery over HTTP."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.load import load_encoder
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.locations import open_store
from hf_vse.serve.app import make_app
from hf_vse.serve.limits import Limits


class Served(NamedTuple):
    """A gallery in a folder, its images, and the encoder that made it."""

    folder: Path
    photographs: Path
    encoder: Encoder


@pytest.fixture(scope="session")
def served(tmp_path_factory, tiny_model, make_photographs) -> Served:
    place = tmp_path_factory.mktemp("served")
    photographs, encoder = make_photographs(place), load_encoder(str(tiny_model))
    GalleryIndex.build(str(photographs), encoder, place / "index")
    return Served(place / "index", photographs, encoder)


@pytest.fixture
def client(served) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of servers with other limits, or another gallery or encoder."""
    with ExitStack() as stack:

        def make(limits: Limits | None = None, gallery=None, encoder=None, **options) -> TestClient:
            app = make_app(gallery or open_store(served.folder), encoder or served.encoder, limits, **options)
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture
def place_of_absolute_files(served, tmp_path) -> Path:
    """The same gallery with items that name files by their whole path, as those of a data set do."""
    made = GalleryIndex.load(served.folder)
    items = [{"file": str(served.photographs / item["file"])} for item in made.items]
    facts = {name: value for name, value in made.facts.items() if name not in ("fields", "root")}
    changed = GalleryIndex.without_index(made.embeds, items, facts, made.plan)
    changed.save(tmp_path / "absolute")
    return tmp_path / "absolute"
