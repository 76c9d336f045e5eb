"""What is above a limit is refused in one line that names field, value and remedy; the rest goes on."""

import asyncio
import os
import re
import signal
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from threading import Event

import PIL.Image
import pytest

from hf_vse.cli.main import main
from hf_vse.search.locations import open_store
from hf_vse.serve.app import make_app
from hf_vse.serve.batching import Batcher
from hf_vse.serve.limits import Limits
from hf_vse.serve.metrics import Histogram
from hf_vse.serve.run import bound_socket
from tests.processes import start_fork

SMALL = Limits(k=20, text=50, queries=3, conditions=2, image_bytes=3000, image_pixels=2000, queue=2, timeout=30)


def png(width: int, height: int) -> bytes:
    file = BytesIO()
    PIL.Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


REFUSED = [
    ("GET", {}, None, 400, "q is missing: give a sentence"),
    ("GET", {"q": " "}, None, 400, "q is empty"),
    ("GET", {"q": "x" * 51}, None, 413, "q has 51 characters, at most 50: shorten it"),
    ("GET", {"q": ["a"] * 4}, None, 413, "q is given 4 times, at most 3 in one request: send several"),
    ("GET", {"q": "a", "k": "21"}, None, 400, "k is '21': give a whole number from 1 to 20"),
    ("GET", {"q": "a", "k": "0"}, None, 400, "k is '0': give a whole number from 1 to 20"),
    ("GET", {"q": "a", "k": "3.0"}, None, 400, "k is '3.0': give a whole number"),
    ("GET", {"q": "a", "k": ["1", "2"]}, None, 400, "k is given 2 times: give it once"),
    ("GET", {"q": "a", "were": "year=2001"}, None, 400, "there is no field 'were': give q, k, where"),
    ("GET", {"q": "a", "where": "year"}, None, 400, "where: condition 'year' is not of the form FIELD OP VALUE"),
    ("GET", {"q": "a", "where": "year=soon"}, None, 400, "where: condition 'year=soon': year holds numbers"),
    ("GET", {"q": "a", "where": ["year=1"] * 3}, None, 413, "where is given 3 times, at most 2"),
    ("GET", {"q": "a", "image": "/etc/passwd"}, None, 400, "image is no file: POST it as a file of a multipart form"),
    ("GET", {"q": "a", "image_weight": "0.5"}, None, 400, "image_weight is of use for an image with a sentence alone"),
    ("POST", {"q": "x" * 51}, None, 413, "q has 51 characters, at most 50"),
    ("POST", {"q": ["a"] * 4}, png(9, 9), 413, "q is given 4 times"),
    ("POST", {"image": "file:///etc/passwd"}, None, 400, "image is no file"),
    ("POST", {}, b"", 400, "image cannot be read, 0 bytes: send a JPEG"),
    ("POST", {}, b"GIF89a no picture", 400, "image cannot be read"),
    ("POST", {}, b"%!PS-Adobe", 400, "PostScript is not supported"),
    ("POST", {}, png(30, 30)[:-40], 400, "image: "),
    ("POST", {}, b"x" * 3001, 413, "image has more than the bytes that are read, at most 3,000: make it smaller"),
    ("POST", {}, b"x" * 500_000, 413, "the request is longer than"),
    ("POST", {}, png(50, 41), 413, "image has 50 x 41 pixels, at most 2,000 in all: make it smaller"),
    ("POST", {"q": "a", "image_weight": "nan"}, png(9, 9), 400, "image_weight is 'nan': give a number from 0 to 1"),
]


def test_each_limit_is_one_line(client):
    web = client(SMALL)
    for method, fields, image, status, line in REFUSED:
        if method == "GET":
            response = web.get("/search", params=fields)
        elif image is None:
            response = web.post("/search", data=fields)
        else:
            response = web.post("/search", data=fields, files={"image": ("a.png", image)})
        said = response.json()["error"]
        assert (response.status_code, response.json().keys()) == (status, {"error"}), (fields, said)
        assert line in said and "\n" not in said and len(said) < 250, (line, said)
    json_body = web.post("/search", json={"q": "a"})
    assert (json_body.status_code, json_body.json()["error"][:36]) == (415, "content-type is 'application/json': ")
    bad_text = web.get("/search?q=caf%e9")
    assert (bad_text.status_code, bad_text.json()["error"]) == (400, "q is not valid UTF-8: encode it as UTF-8")
    other = web.get("/admin")
    assert (other.status_code, other.json()["error"]) == (404, "there is no GET of '/admin': see /openapi.json")
    assert web.delete("/search").status_code == 405
    assert web.get("/search", params={"q": "x" * 50, "k": 20}).status_code == 200  # after all that it goes on
    assert web.post("/search", files={"image": ("a.png", png(40, 50))}).status_code == 200


def test_a_token_is_asked_for_where_there_is_one(client):
    web = client(token="secret")
    for path in ("/search?q=a", "/metrics", "/openapi.json"):
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            response = web.get(path, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert web.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert web.get("/health").json() == {"status": "ok", "items": 12}


def test_a_token_that_is_not_set_ends_the_command(served, monkeypatch, capsys):
    monkeypatch.delenv("NO_TOKEN", raising=False)
    assert main(["serve", str(served.folder), "--token_env", "NO_TOKEN"]) == 1
    assert "--token_env NO_TOKEN: set this variable" in capsys.readouterr().err


class Held:
    """An encoder that waits until it is let go."""

    def __init__(self, encoder):
        self.encoder, self.go, self.asked = encoder, Event(), []
        self.go.set()

    def query(self, text, *rest):
        self.asked.append(text)
        assert self.go.wait(30)
        return self.encoder.query(text, *rest)

    def __getattr__(self, name):
        return getattr(self.encoder, name)


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_more_requests_than_the_queue_holds_are_refused(client, served):
    held = Held(served.encoder)
    web = client(SMALL, encoder=held)
    held.go.clear()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(web.get, "/search", params={"q": "red"}) for _ in range(2)]
        until(lambda: "hf_vse_in_flight 2\n" in web.get("/metrics").text)
        refused = web.get("/search", params={"q": "red"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"] == "2 requests are being answered: repeat it in a second"
        held.go.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
    assert web.get("/search", params={"q": "red"}).status_code == 200


def test_what_takes_too_long_is_given_up_and_not_answered_later(client, served):
    held = Held(served.encoder)
    web = client(Limits(timeout=0.2), encoder=held, most=1)
    held.go.clear()
    late = web.get("/search", params={"q": "first"})
    assert (late.status_code, late.json()["error"][:19]) == (504, "no answer within 0.")
    assert web.get("/search", params={"q": "second"}).status_code == 504  # waits behind the first
    assert web.get("/health").status_code == 503
    held.go.set()
    until(lambda: web.get("/health").status_code == 200)
    assert web.get("/search", params={"q": "third"}).status_code == 200
    assert held.asked[1:] == [["first"], ["third"]]


def test_a_body_that_is_long_or_slow_is_refused_before_its_end(served):
    """Without a length in the head; as a stranger sends it who keeps the connection open."""
    app = make_app(open_store(served.folder), served.encoder, Limits(timeout=0.3, image_bytes=1000))
    head = [(b"content-type", b"multipart/form-data; boundary=xx")]
    part = b'--xx\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
    scope = {"type": "http", "method": "POST", "path": "/search", "headers": head, "query_string": b"", "app": app}
    sent: list[int] = []

    async def ask(slow: bool) -> tuple[int, bytes]:
        pieces, answer = iter([part]), []
        sent.clear()

        async def receive():
            if slow and sent:
                await asyncio.sleep(60)
            sent.append(1)
            return {"type": "http.request", "body": next(pieces, b"x" * 100_000), "more_body": True}

        async def send(message):
            answer.append(message)

        async with app.router.lifespan_context(app):
            await app(dict(scope), receive, send)
        return answer[0]["status"], answer[1]["body"]

    assert asyncio.run(ask(slow=True)) == (
        408,
        b'{"error": "the request did not arrive within 0.3 s: send less at once"}',
    )
    status, body = asyncio.run(ask(slow=False))
    assert status == 413 and b"the request is longer than" in body and len(sent) < 12


def test_questions_that_arrive_together_are_one_call_and_one_that_fails_is_alone():
    calls = []

    def answer(questions):
        calls.append(list(questions))
        if "bug" in questions:
            raise RuntimeError("all of them")
        return [error if (error := {"bad": ValueError("bad")}.get(each)) else each * 2 for each in questions]

    async def ask(*rounds, most=4, wait=0.0):
        sizes = Histogram((1, 2, 4))
        batcher = Batcher(answer, most, wait, sizes)
        async with batcher.running():
            found = [await asyncio.gather(*map(batcher.ask, questions)) for questions in rounds]
        return found, sizes

    found, sizes = asyncio.run(ask("abcdef", ["g", "bad"], ["bug", "h"]))
    assert calls == [list("abcd"), list("ef"), ["g", "bad"], ["bug", "h"]]
    assert found[0] == ["aa", "bb", "cc", "dd", "ee", "ff"] and found[1][0] == "gg"
    assert isinstance(found[1][1], ValueError) and all(isinstance(each, RuntimeError) for each in found[2])
    assert sizes.counts == [0, 3, 1, 0] and sizes.sum == 10


def test_the_command_serves_until_a_signal_and_answers_who_is_there(served, tmp_path, capsys):
    log = tmp_path / "log"
    words = ["serve", str(served.folder), "--port", "0", "--wait_ms", "700", "--batch", "2"]
    process = start_fork(log, main, words)
    try:
        until(lambda: re.search(r"12 items at (http://127.0.0.1:\d+)", log.read_text()))
        url = re.search(r"http://\S+", log.read_text())[0]
        open_url = partial(urllib.request.build_opener(urllib.request.ProxyHandler({})).open, timeout=20)

        def answers() -> bool:
            try:
                return open_url(f"{url}/health").status == 200
            except OSError:
                return False

        until(answers)
        port = url.rpartition(":")[2]
        assert main(["serve", str(served.folder), "--port", port]) == 1
        assert f"cannot listen at --host 127.0.0.1 --port {port}" in capsys.readouterr().err
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(open_url, f"{url}/search?q=red")
            until(lambda: b"hf_vse_in_flight 1" in open_url(f"{url}/metrics").read())
            os.kill(process.pid, signal.SIGTERM)
            assert waiting.result().status == 200
        process.join(20)
        assert process.exitcode == 0, log.read_text()
    finally:
        process.kill()
    with pytest.raises(OSError):
        open_url(f"{url}/health")


def test_answers_are_sent_at_once():
    """A connection on which small packets wait for the acknowledgement of others would cost 40 ms an answer."""

    async def option() -> int:
        found = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(connected, sock=bound_socket("127.0.0.1", 0)) as server:
            await asyncio.open_connection(*server.sockets[0].getsockname())
            return await found

    assert asyncio.run(option())


def test_a_question_waits_for_others_only_where_others_came_before():
    async def ask() -> list[int]:
        batcher, sizes = Batcher(lambda questions: questions, 2, 0.0, histogram := Histogram((1, 2))), []
        async with batcher.running(), asyncio.timeout(60):
            await batcher.ask("a")
            batcher.wait = 3600.0
            await batcher.ask("b")  # as the one before was alone
            await asyncio.gather(batcher.ask("c"), batcher.ask("d"))
            sizes += histogram.counts
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await batcher.ask("e")
        return sizes

    assert asyncio.run(ask()) == [2, 1, 0]
