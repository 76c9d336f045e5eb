"""Ray Data makes the same gallery of shards; only where ray is installed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_vse.cli.main import main
from hf_vse.search.locations import open_store
from tests.data.test_sources import shard
from tests.search.test_shards import MEAN, samples

ROOT = Path(__file__).parents[2]


def test_ray_makes_the_same_gallery(tmp_path):
    pytest.importorskip("ray.data")
    for number in range(3):
        shard(tmp_path / "photographs" / f"{number}.tar", samples(number * 4, 4))
    (tmp_path / "mean.py").write_text(MEAN)
    pattern, model = f"{tmp_path}/photographs/{{0..2}}.tar", f"{tmp_path}/mean.py:Mean"
    words = [pattern, str(tmp_path / "ray"), "--model", model, "--parts", str(tmp_path / "parts")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([sys.executable, ROOT / "scripts/launch/ray_index.py", *words], check=True, env=environment)
    assert main(["index", pattern, str(tmp_path / "one"), "--model", model, "--quiet"]) == 0
    found, expected = (open_store(tmp_path / name).gallery for name in ("ray", "one"))
    assert len(found) == 12 and list(found.items) == list(expected.items)
    np.testing.assert_array_equal(found.embeds, expected.embeds)
