from pathlib import Path

import pytest

from hf_vse.data.scene_catalogues import write_catalogues

ENCODER = f"{Path(__file__).parent / 'scenes_encoder.py'}:Scenes"


@pytest.fixture(scope="session")
def catalogues(tmp_path_factory) -> Path:
    """Two catalogues of scenes, see `write_catalogues`: 137 and 125 records, 100 links. Nobody writes into them."""
    folder = tmp_path_factory.mktemp("link") / "catalogues"
    write_catalogues(folder, 100)
    return folder
