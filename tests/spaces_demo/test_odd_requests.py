"""Requests that no page sends: JSON that is none, values of the wrong kind, and a fuzz of all endpoints and routes."""

import json
import os
import random
import re

import numpy as np
import pytest

from tests.spaces_demo.conftest import API, META, WITH_PHOTOGRAPH, WITHOUT_PHOTOGRAPH, ask, good_answer

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")
pytest.importorskip("faiss")

from guard import MAX_DEPTH, MAX_TEXT, MAX_VALUES, RefusedRequestError, read_question  # noqa: E402


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"data": [NaN]}', 400),
        (b'{"data": [1e999]}', 400),
        (b'{"data": [1%s]}' % (b"0" * 400), 400),
        (b'{"data": [1%s]}' % (b"0" * 5000), 400),
        (b'{"data": ["\\ud800"]}', 400),
        (b'{"\\ud800": []}', 400),
        (b'{"session_hash": 5}', 400),
        (b'{"session_hash": ""}', 400),
        (b'{"event_id": ["a"]}', 400),
        (b'{"data": [%s1]}' % (b"1," * MAX_VALUES), 400),
        (b'{"data": %s1%s}' % (b"[" * MAX_DEPTH, b"]" * MAX_DEPTH), 400),
        (b'{"data": ["%s"]}' % (b"x" * (MAX_TEXT + 1)), 413),
    ],
)
def test_odd_json_is_refused_in_one_line(body, status):
    with pytest.raises(RefusedRequestError) as refused:
        read_question(body)
    assert refused.value.status == status and "\n" not in str(refused.value)


def test_json_that_a_question_needs_is_read():
    picture = "data:image/jpeg;base64," + "a" * 10 * MAX_TEXT
    question = {"data": [{"url": picture, "path": None}, "😀", -1.5, True, None], "session_hash": "abc"}
    assert read_question(json.dumps(question).encode()) == question


ODD = [None, True, -1, 0, 10**18, -0.0, 1e308, "", " ", "x" * 5000, "😀\u202e\x00\u2028", "{}", "../etc", [], {}]
ODD += [[None], [[[[[[]]]]]], {"path": None}, {"path": 5}, {"path": ["a"]}, {"url": 5}, {"url": "data:"}, {"value": 1}]
ODD += [{"url": "data:image/png;base64,AAAA"}, {"path": "/etc/passwd", "meta": 5}, {"path": "x", "meta": {"_type": 1}}]
ODD += [{"__type__": "update", "value": 3}, {"meta": META}, {"path": "", "meta": META}, ["a"] * 500, {"a" * 900: 1}]
FUNCTIONS = [0, 1, 5, 10, 20, 30, 1000, -1, None, "a", 1.5, [], True]


def odd_question(rng: random.Random) -> tuple[str, object]:
    """A route and a body, most of them nearly right."""
    endpoint = rng.choice([*WITH_PHOTOGRAPH, *WITHOUT_PHOTOGRAPH, "nothing", "_", "x" * 64])
    data = [
        rng.choice(ODD) if rng.random() < 0.6 else each
        for each in (WITH_PHOTOGRAPH | WITHOUT_PHOTOGRAPH).get(endpoint, [])
    ]
    data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data + [rng.choice(ODD)] * rng.randrange(2)
    session = rng.choice(["fuzz", None, "", "😀", "a/b", 5, "fuzz2"])
    body = {"data": rng.choice([data, data, data, *ODD]), "session_hash": session}
    if rng.random() < 0.5:
        return f"{API}/call/{endpoint}", body
    kinds = {"fn_index": rng.choice(FUNCTIONS), "trigger_id": rng.choice(FUNCTIONS), "event_data": rng.choice(ODD)}
    body |= {name: value for name, value in kinds.items() if rng.random() < 0.8}
    routes = "cancel reset component_server call/v2/similar run/predict api/similar stream/x upload process_recording"
    routes = ["queue/join"] * 6 + routes.split() + ["vibe-edit", "heartbeat/x", "call/", "queue/data"]
    return f"{API}/{rng.choice(routes)}", rng.choice([body, body, body, body, rng.choice(ODD)])


def odd_address(rng: random.Random) -> str:
    names = (
        "file= file/ upload_progress?upload_id= queue/data?session_hash= call/similar/ call/v2/a/ proxy= theme.css "
    )
    names += (
        "custom_component/1/client/x/ stream/a/1/2/playlist.m3u8 info?all_endpoints= deep_link?session_hash= app_id "
    )
    names += "monitoring/ vibe-code run-history/records profiling/traces"
    values = ["", "x", "%00", "%ff%fe", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "%F0%9F%98%80", "5", "a" * 300]
    return f"{API}/{rng.choice(names.split())}{rng.choice(values)}"


def odd_upload(rng: random.Random) -> dict:
    name = rng.choice(["a.png", "", "..", "../../x", "a" * 300, "\x00", "😀.png", "/etc/passwd", ".", "a/b"])
    noise = np.random.default_rng(rng.randrange(100)).bytes(rng.choice([0, 1, 5000]))
    field = rng.choice(["files", "files", "files", "file", ""])
    return {"files": {field: (name, noise)}} if rng.random() < 0.8 else {"data": {field or "files": "text"}}


def fuzz(web, seed: int, count: int) -> None:
    """Sends odd questions, addresses and uploads; no answer may be a failure, or tell of this machine."""
    rng = random.Random(seed)
    for _ in range(count):
        chance = rng.random()
        if chance < 0.1:
            what = odd_upload(rng)
            answers = [web.post(f"{API}/upload", **what)]
        elif chance < 0.2:
            what = odd_address(rng)
            with web.stream("GET", what) as stream:  # some are streams without an end
                answers = [httpx.Response(stream.status_code, text=next(stream.iter_text(), ""))]
        else:
            what = odd_question(rng)
            answers = [web.post(what[0], json=what[1])]
            event = read_json(answers[0].text).get("event_id")
            if event:
                answers.append(web.get(f"{API}/call/x/{event}"))
        for answer in answers:
            assert answer.status_code < 500, (what, answer.text)
            is_told = re.search(r'Traceback|File "|site-packages|/root|spaces_demo|\.py\b', answer.text)
            assert not is_told or what == f"{API}/theme.css", (what, is_told)


def read_json(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@pytest.mark.parametrize("number", [None, "1", -1, 2**53, [], True])
def test_odd_numbers_are_taken_or_refused_in_one_line(web, number):
    for endpoint, data in (("thumbnail", [number]), ("search_by_text", ["a", number])):
        assert ask(web, endpoint, data).startswith(("event: complete", 'event: error\ndata: {"error": "'))


def test_odd_questions_get_an_answer(server, web):
    """VSE_FUZZ=20000 asks so many (default: 250, some seconds), with the seed VSE_FUZZ_SEED (default: 0)."""
    fuzz(web, int(os.environ.get("VSE_FUZZ_SEED", "0")), int(os.environ.get("VSE_FUZZ", "250")))
    assert server.process.poll() is None and good_answer(web)
    assert "Traceback" not in server.log
