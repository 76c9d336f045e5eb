"""A push that dies: at each request, and at each write of what it downloads. The folder is only ever read.

The fake Hub lives in this process and the push in a forked one, which is pointed at it there.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from huggingface_hub import get_session

from hf_vse.hub.push import push_model
from tests.faults.killing import SOAK, names_of_points, points_to_try, run
from tests.hub.fake_hub import TOKEN, FakeHub
from tests.hub.records import coco_record

NAME = "org/pushed"


@pytest.fixture
def hub():
    with FakeHub() as running:
        yield running


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    """`model` and an empty `cache` in a folder that is watched."""
    work = tmp_path / "work"
    shutil.copytree(tiny_model, work / "model")
    (work / "model" / "metrics.json").write_text(json.dumps(coco_record()))
    (work / "cache").mkdir()
    return work


def killed_at(request: int | str, sent: bool) -> None:
    """This process ends before its n-th request, or the one with that in its address, or when the answer is there."""
    client, count = type(get_session()), 0
    plain = client.send

    def send(*args, **kwargs):
        nonlocal count
        count += 1
        meant = request in str(args[1].url) if isinstance(request, str) else count == request
        if meant and not sent:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = plain(*args, **kwargs)
        if meant:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    client.send = send


def pushing(hub: FakeHub, folder: Path, request: int | str = 0, sent: bool = False, license: str | None = None):
    def action() -> None:
        hub.take_over(folder / "cache")
        killed_at(request, sent)
        push_model(folder / "model", NAME, token=TOKEN, license=license)

    return action


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def visible(hub: FakeHub) -> dict[str, bytes]:
    found = hub.repositories.get(f"models/{NAME}")
    return {} if found is None else found.files


def said(folder: Path) -> str:
    return (folder.parent / "output.log").read_text()


def forget(hub: FakeHub) -> None:
    hub.repositories.clear()
    hub.blobs.clear()
    hub.uploads.clear()


# Requests of a push to a new repository; how many go before the last one, the commit, depends on what is cached.
LAST = "/commit/"
FEW = [(2, True), ("/preupload/", True), (LAST, False), (LAST, True)]
TRIED = [(number, sent) for number in range(1, 6) for sent in (False, True)] + FEW


def test_a_push_that_dies_shows_nothing_and_its_repetition_everything(hub, folder):
    before = contents(folder / "model")
    assert run(pushing(hub, folder), folder) == 0, said(folder)
    assert not any(" model" in point for point in names_of_points(folder))
    whole, died, left = dict(visible(hub)), [], []
    assert {"model.safetensors", "README.md", "metrics.json"} <= whole.keys()
    for request, sent in TRIED if SOAK else FEW:
        forget(hub)
        died.append(run(pushing(hub, folder, request, sent), folder))
        left.append(dict(visible(hub)))
        assert run(pushing(hub, folder), folder) == 0, said(folder)
        assert visible(hub) == whole and len(hub.uploads) == len(set(hub.uploads))
    assert set(died) == {-signal.SIGKILL} and contents(folder / "model") == before
    assert left == [{}] * (len(left) - 1) + [whole]


def test_a_card_that_was_half_fetched_is_fetched_again(hub, folder):
    """The second push reads the card that is there; the repetition ends as if nothing had happened."""
    first, second = pushing(hub, folder), pushing(hub, folder, license="mit")
    assert run(first, folder) == 0, said(folder)
    old = dict(visible(hub))
    empty(folder / "cache")
    points = points_to_try(second, folder)
    new = dict(visible(hub))
    assert b"license: mit" in new["README.md"] and len(points) > 3
    for at in points if SOAK else points[len(points) // 2 :: len(points)]:
        hub.repositories[f"models/{NAME}"].files = dict(old)
        empty(folder / "cache")
        assert run(second, folder, at) == -signal.SIGKILL
        assert visible(hub) in (old, new)
        assert run(second, folder) == 0, said(folder)
        assert visible(hub) == new


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
