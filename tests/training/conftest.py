"""Runs draw no pictures: that takes longer than most of them, and a run only warns of what it cannot draw."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_vse.training.result.draw_pictures", lambda *given: [])
        yield
