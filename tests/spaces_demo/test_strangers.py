"""The demo as strangers meet it: files of the host, endless requests, odd JSON, and a server that has to end."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import PIL.Image
import pytest

from tests.faults.killing import slow
from tests.processes import start_fork
from tests.spaces_demo.conftest import API, META, WITH_PHOTOGRAPH, Server, ask, demo, good_answer, png, wait_until

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")
pytest.importorskip("faiss")

from guard import MAX_TEXT  # noqa: E402
from limits import MAX_UPLOAD_BYTES  # noqa: E402


@pytest.fixture(scope="module")
def elsewhere():
    """A server of this machine and the addresses that were asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def join(web, session: str, fn_index: int, data: list) -> dict:
    """The last message about a question that comes as the page's own do."""
    asked = web.post(f"{API}/queue/join", json={"data": data, "fn_index": fn_index, "session_hash": session})
    assert asked.status_code == 200, asked.text
    messages = web.get(f"{API}/queue/data", params={"session_hash": session}).text.split("\n\n")
    return next(each for each in map(read_message, messages) if each.get("msg") == "process_completed")


def read_message(line: str) -> dict:
    return json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}


def upload(web, content: bytes, name: str = "picture.png") -> str:
    return web.post(f"{API}/upload", files={"files": (name, content)}).json()[0]


def functions(web, kind: str) -> list[tuple[int, list[str]]]:
    """Number of every event of the page with an input of the kind, and the kinds of all its inputs."""
    config = web.get("/config").json()
    kinds = {each["id"]: each["type"] for each in config["components"]}
    found = [(each["id"], [kinds[name] for name in each["inputs"]]) for each in config["dependencies"]]
    return [(number, inputs) for number, inputs in found if kind in inputs]


# --- files of the host ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forbidden(tmp_path_factory, server, elsewhere) -> list[dict]:
    """Files that a stranger may ask for: of the host, devices, links, addresses, and paths that only look well."""
    folder = tmp_path_factory.mktemp("host")
    secret = folder / "secret.png"
    PIL.Image.new("RGB", (40, 40), "red").save(secret)
    os.mkfifo(folder / "pipe")
    (uploads,) = (server.folder / "tmp").glob("vse_demo_*")
    inside = uploads / ("a" * 64)
    inside.mkdir(exist_ok=True)
    (inside / "link.png").symlink_to(secret)
    (inside / "folder.png").mkdir()
    os.mkfifo(inside / "pipe.png")
    (uploads / ("b" * 64)).symlink_to(folder, target_is_directory=True)
    (uploads / "secret.png").write_bytes(secret.read_bytes())
    paths = [secret, "/dev/ptmx", "/dev/zero", "/dev/stdin", folder / "pipe", inside / "link.png", inside / "pipe.png"]
    paths += [inside / "folder.png", uploads / ("b" * 64) / "secret.png", uploads / "secret.png", inside, uploads]
    paths += [f"{uploads}/{'a' * 64}/../../../../host0/secret.png", f"{inside}/..", secret.as_uri(), "secret.png", "."]
    paths += [elsewhere[0] + "/path", f"{secret}\0.png"]
    files = [{"path": str(path)} for path in paths]
    files += [{"path": str(secret), "orig_name": str(inside / "a.png"), "url": f"/gradio_api/file={inside}/a.png"}]
    files += [{"url": address} for address in (elsewhere[0] + "/url", secret.as_uri(), str(secret))]
    files += [{"path": None, "url": elsewhere[0] + "/both", "orig_name": "a.png"}]
    return files


def test_no_endpoint_opens_a_file_of_the_host(web, forbidden, elsewhere):
    """With and without `meta`, which decides whether gradio looks at a file at all."""
    for endpoint, arguments in WITH_PHOTOGRAPH.items():
        for file in forbidden if endpoint == "similar" else forbidden[:2]:
            for given in (file, file | {"meta": META}):
                answer = ask(web, endpoint, [given if each is None else each for each in arguments])
                assert answer.startswith("event: error"), (endpoint, given)
                assert re.search("from elsewhere|no longer here|not a readable picture|not an input", answer), (
                    endpoint,
                    given,
                    answer,
                )
    assert not elsewhere[1] and good_answer(web)


def test_no_input_of_the_page_takes_a_file_of_the_host(web, forbidden, elsewhere):
    """Every event of the page, texts and sliders too, with the file at any depth; nothing is deleted either."""
    secret = Path(forbidden[0]["path"])
    numbers = functions(web, "image") + functions(web, "file") + functions(web, "textbox") + functions(web, "dataset")
    assert len(numbers) > 15
    for number, kinds in numbers:
        for given in (forbidden[0], {"meta": META, "path": elsewhere[0]}, [{"deep": [forbidden[0] | {"meta": META}]}]):
            message = join(web, f"session{number}", number, [given for _ in kinds])
            assert not message["success"] and "from elsewhere" in message["output"]["error"], (number, kinds)
    (number, kinds), *_ = functions(web, "file")
    for given in ([forbidden[0]], [forbidden[0] | {"meta": META}], forbidden[0]):
        assert not join(web, "files", number, [given])["success"]
    assert secret.is_file() and not elsewhere[1]


def test_an_upload_is_taken_with_and_without_meta(web):
    path = upload(web, png(PIL.Image.new("RGB", (40, 30), "blue")))
    for more in ({}, {"meta": META}, {"url": "http://127.0.0.1:9/x", "orig_name": "../../etc/passwd", "meta": META}):
        assert ask(web, "similar", [{"path": path} | more, 2]).startswith("event: complete")


def test_old_uploads_are_deleted_unfinished_ones_too(tmp_path, monkeypatch):
    import uploads

    monkeypatch.setattr(uploads, "get_upload_folder", lambda: str(tmp_path))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.png").touch()
        (tmp_path / f"tmp{name}").touch()  # as gradio leaves it when a visitor goes away in the middle
    for old in (tmp_path / "old" / "picture.png", tmp_path / "tmpold"):
        os.utime(old, (0, 0))
    uploads.delete_old_uploads(60)
    assert {each.name for each in tmp_path.rglob("*")} == {"old", "new", "picture.png", "tmpnew"}
    os.utime(tmp_path / "old", (0, 0))
    uploads.delete_old_uploads(60)
    assert {each.name for each in tmp_path.iterdir()} == {"new", "tmpnew"}


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (11, 1000), (6_325, 6_325)])
def test_pictures_that_would_take_gigabytes_are_refused(web, size):
    file = io.BytesIO()
    PIL.Image.new("L", size).save(file, "PNG")
    path = upload(web, file.getvalue())
    answer = ask(web, "similar", [{"path": path, "meta": META}, 2])
    assert answer.startswith("event: error") and re.search("10 times as long|40 million", answer)


# --- long requests --------------------------------------------------------------------------------------------


def resident(server: Server) -> float:
    """Resident memory of the server in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1]) / 1024


MULTIPART = "Content-Type: multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%d"\r\n\r\n'
LENGTH = [["Transfer-Encoding: chunked"], [f"Content-Length: {900 * 2**20}"]]


def send(server: Server, path: str, head: list[str], pieces: list[bytes]) -> int:
    """Status of the answer to a body, or to its beginning."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join([f"POST {path} HTTP/1.1", f"Host: {host}", *head, "", ""]).encode())
        for piece in pieces:
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if LENGTH[0][0] in head else piece)
        return int(connection.recv(100).split(b" ")[1])


@pytest.mark.parametrize("head", LENGTH)
@pytest.mark.parametrize("path", ["/x/upload", f"{API}/call/upload", f"{API}/queue/join", "/login"])
def test_a_long_body_is_refused_before_its_end(server, web, path, head):
    """On every route, with its length announced and without."""
    before = resident(server)
    assert send(server, path, ["Content-Type: application/json", *head], [b"0" * 2**20] * 30) in (404, 413)
    assert resident(server) < before + 20 and good_answer(web)


@pytest.mark.parametrize("head", LENGTH)
def test_many_files_are_refused_before_their_end(server, web, head):
    """Each is below the limit of a file, together they are too long; what was stored of them is deleted."""
    file = FILE % 1 + b"0" * (2**20 - 200) + b"\r\n"
    (uploads,) = (server.folder / "tmp").glob("vse_demo_*")
    before, others = resident(server), set(uploads.glob("tmp*"))
    assert send(server, f"{API}/upload", [MULTIPART, *head], [file] * (MAX_UPLOAD_BYTES // 2**20 + 2)) == 413
    assert set(uploads.glob("tmp*")) <= others and resident(server) < before + 20 and good_answer(web)


def test_texts_and_names_of_sessions_are_bounded(web):
    assert web.post(f"{API}/call/search_by_text", json={"data": ["x" * (MAX_TEXT + 1), 3]}).status_code == 413
    long = web.post(f"{API}/call/search_by_text", json={"data": ["a", 3], "session_hash": "x" * 1000})
    assert long.status_code == 400 and "session_hash" in long.text
    assert web.get(f"{API}/upload_progress", params={"upload_id": "x" * 1000}).status_code == 414


def test_who_does_not_read_answers_has_to_wait(web):
    number, _ = functions(web, "slider")[0]
    question = {"data": ["a dog", 48], "fn_index": number, "session_hash": "unread"}
    codes = [web.post(f"{API}/queue/join", json=question).status_code for _ in range(40)]
    assert codes == [200] * 32 + [429] * 8 and good_answer(web)
    cancel = {"session_hash": "unread", "fn_index": number, "event_id": "none"}
    assert web.post(f"{API}/cancel", json=cancel).status_code == 200


@slow
def test_memory_does_not_grow_with_visitors(server, web):
    """Gradio keeps 0.15 MB of each new one: 18 MB of these 120. The bound is far below that and far above noise."""
    for number in range(40):  # until as many sessions are kept as ever will be
        ask(web, "about", [], session_hash=f"early{number}")
    before = resident(server)
    for number in range(120):
        ask(web, "about", [], session_hash=f"late{number}")
    assert resident(server) < before + 8


def test_gradio_forgets_answers_that_nobody_reads(monkeypatch):
    import asyncio

    from page import TIDYINGS_TO_READ, Page

    monkeypatch.setattr("page.delete_old_uploads", lambda: None)
    page = Page().queue_for_strangers()
    queue = page._queue
    for session in ("left", "reads"):
        queue.pending_messages_per_session[session] = asyncio.Queue()
        queue.pending_messages_per_session[session].put_nowait("answer")
        queue.pending_event_ids_session[session] = {"event"}
    queue.pending_event_ids_session["gone"] = set()
    page.upload_file_set.add("file")
    for _ in range(TIDYINGS_TO_READ):
        page.tidy()
        inbox = queue.pending_messages_per_session["reads"]
        inbox.empty() or inbox.get_nowait()
    assert list(queue.pending_messages_per_session) == list(queue.pending_event_ids_session) == ["reads"]
    assert not page.upload_file_set


# --- the end --------------------------------------------------------------------------------------------------


@slow
def test_the_command_and_its_page_end_together(tmp_path, model_folder, parquet):
    """While an event stream and an upload are open: nobody waits for them, no process and no upload is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--model", str(model_folder), "--dataset", str(parquet), "--port", str(port)]
    (tmp_path / "tmp").mkdir()
    log = tmp_path / "log"
    process = start_fork(log, demo, {"TMPDIR": str(tmp_path / "tmp"), "HF_HOME": str(tmp_path)}, words)
    try:
        wait_until(lambda: not process.is_alive() or "Running on" in log.read_text(), 120)
        assert process.is_alive(), log.read_text()[-3000:]
        with httpx.stream("GET", f"http://127.0.0.1:{port}{API}/heartbeat/open") as stream:
            assert "ALIVE" in next(stream.iter_text())
            with socket.create_connection(("127.0.0.1", port)) as visitor:
                head = [f"POST {API}/upload HTTP/1.1", "Host: a", MULTIPART, "Content-Length: 1000000", "", ""]
                visitor.sendall("\r\n".join(head).encode() + FILE % 1 + b"0" * 1000)
                wait_until(lambda: list((tmp_path / "tmp").glob("vse_demo_*/tmp*")), 10)
                start = time.monotonic()
                process.terminate()
                process.join(20)
                assert process.exitcode == 143
        assert time.monotonic() - start < 10
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # nobody of its group is left
        assert not list((tmp_path / "tmp").glob("vse_demo_*"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join(20)
