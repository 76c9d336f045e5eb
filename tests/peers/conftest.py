"""Markers of the common model tests of transformers."""

import pytest

MARKERS = "accelerate_tests flash_attn_test flash_attn_3_test flash_attn_4_test torch_compile_test slow order"


def pytest_configure(config: pytest.Config) -> None:
    for name in MARKERS.split():
        config.addinivalue_line("markers", name)
