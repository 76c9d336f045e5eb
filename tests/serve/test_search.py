"""Answers over HTTP are those of `GalleryIndex.search`, alone and together, and nothing of the machine is in them."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from hf_vse.cli.main import main
from hf_vse.embed.load import load_encoder
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.locations import open_store
from hf_vse.serve.app import make_app
from hf_vse.serve.limits import Limits
from hf_vse.serve.openapi import openapi_of
from tests.conftest import SAME_VECTORS

SENTENCES = ["red square", "a small blue ring above", "left", "green star right of a large yellow circle"]


def expected(served, *query, k=10, where=()):
    scores, items = GalleryIndex.load(served.folder).search(served.encoder.query(*query), k, served.encoder, where)
    return list(zip(scores[0].tolist(), items[0], strict=True))


def assert_same(results, wanted) -> None:
    assert [result["item"] for result in results] == [item for _, item in wanted]
    rounding = 0.5e-4 + SAME_VECTORS
    assert all(abs(result["score"] - score) < rounding for result, (score, _) in zip(results, wanted, strict=True))


def results_of(response):
    assert response.status_code == 200, response.text
    return [query["results"] for query in response.json()["queries"]]


def test_a_get_finds_what_the_gallery_finds(client, served):
    web = client()
    for fields in ({}, {"k": 3}, {"where": ["year>=2003", "year<2007"]}, {"where": "captions~red", "k": 100}):
        (results,) = results_of(web.get("/search", params={"q": SENTENCES[0]} | fields))
        where = fields.get("where", [])
        where = [where] if isinstance(where, str) else where
        assert_same(results, expected(served, SENTENCES[0], k=fields.get("k", 10), where=where))
    (nothing,) = results_of(web.get("/search", params={"q": "red", "where": "year>2050"}))
    assert nothing == []


def test_a_post_takes_sentences_a_photograph_and_both(client, served):
    web, file = client(), served.photographs / "lake/03.png"
    fields = {"q": SENTENCES, "k": "4", "where": ["year!=2001"]}
    for found, sentence in zip(results_of(web.post("/search", data=fields)), SENTENCES, strict=True):
        assert_same(found, expected(served, sentence, k=4, where=["year!=2001"]))
    (alone,) = results_of(web.post("/search", files={"image": file.read_bytes()}))
    assert_same(alone, expected(served, None, str(file)))
    assert alone[0]["item"]["file"] == "lake/03.png"
    fields = {"q": SENTENCES[:2], "image_weight": "0.8"}
    refined = results_of(web.post("/search", data=fields, files={"image": file.read_bytes()}))
    for found, sentence in zip(refined, SENTENCES[:2], strict=True):
        assert_same(found, expected(served, sentence, str(file), 0.8))


def test_concurrent_requests_are_answered_together_and_each_as_alone(client, served):
    """The server waits for eight queries, or a minute; another `k`, conditions and a refusal are among them."""
    web = client(most=8, wait=60)
    asked = [{"q": sentence, "k": k} for sentence in SENTENCES[:3] for k in (2, 5)]
    asked += [{"q": SENTENCES[0], "where": "year=2004"}, {"q": SENTENCES[0], "where": "colour=red"}]
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda fields: web.get("/search", params=fields), asked))
    assert 'hf_vse_batch_size_bucket{le="4"} 0\nhf_vse_batch_size_bucket{le="8"} 1' in web.get("/metrics").text
    for fields, response in zip(asked[:7], responses[:7], strict=True):
        where = [fields["where"]] if "where" in fields else []
        assert_same(results_of(response)[0], expected(served, fields["q"], k=fields.get("k", 10), where=where))
    assert responses[7].status_code == 400
    assert (
        "where: condition 'colour=red': no item has 'colour'; there are captions, file" in responses[7].json()["error"]
    )


def test_metrics_count_what_was_answered(client):
    web = client(token=None)
    web.post("/search", data={"q": SENTENCES})
    web.get("/search", params={"q": "red"})
    web.get("/search", params={"q": "red", "k": "many"})
    web.get("/nowhere")
    lines = web.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['hf_vse_requests_total{path="/search",status="200"}'] == "2"
    assert values['hf_vse_requests_total{path="/search",status="400"}'] == "1"
    assert values['hf_vse_requests_total{path="other",status="404"}'] == "1"
    assert (values["hf_vse_queries_total"], values["hf_vse_items"], values["hf_vse_in_flight"]) == ("5", "12", "0")
    assert values["hf_vse_search_seconds_count"] == values['hf_vse_search_seconds_bucket{le="+Inf"}'] == "3"
    assert (values["hf_vse_batch_size_count"], values["hf_vse_batch_size_sum"]) == ("2", "5.000000")
    kinds = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    assert all(any(name.startswith(kind) for kind in kinds) for name in values) and len(kinds) == 6


def test_the_description_is_of_this_server(client):
    web = client()
    described = web.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1") and set(described["paths"]) == {
        route.path for route in web.app.routes
    }
    fields = {each["name"]: each["schema"] for each in described["paths"]["/search"]["get"]["parameters"]}
    assert fields["k"]["maximum"] == 100 and web.get("/search", params={"q": "a", "k": 101}).status_code == 400
    assert fields["q"]["maxItems"] == 32 and fields["q"]["items"]["maxLength"] == 1000
    form = described["paths"]["/search"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"q", "k", "where", "image_weight", "image"}
    answer = web.get("/search", params={"q": "a", "k": 1}).json()
    found = described["components"]["schemas"]["Found"]["properties"]["queries"]["items"]
    assert set(answer["queries"][0]) == set(found["properties"])
    assert set(answer["queries"][0]["results"][0]) == set(found["properties"]["results"]["items"]["properties"])
    assert "security" not in described and openapi_of(Limits(), True)["security"] == [{"token": []}]


def test_no_path_of_the_machine_is_shown(client, served, place_of_absolute_files, monkeypatch, caplog):
    web = client(gallery=open_store(place_of_absolute_files))
    (results,) = results_of(web.get("/search", params={"q": "red", "k": 12}))
    assert sorted(result["item"]["file"] for result in results) == [f"{row:02d}.png" for row in range(12)]
    texts = [
        web.get(path).text for path in ("/health", "/metrics", "/openapi.json", "/search?q=a", "/search?q=a&where=x")
    ]
    secret = str(served.photographs.parent)
    for error in (OSError, ValueError):
        monkeypatch.setattr(GalleryIndex, "search", lambda *_, error=error: (_ for _ in ()).throw(error(secret)))
        response = web.get("/search", params={"q": "red"})
        assert response.status_code == {OSError: 503, ValueError: 500}[error]
        texts.append(response.text)
        assert secret in caplog.text
        caplog.clear()
    assert not any(secret in text or "/tmp" in text for text in texts)


def test_values_that_json_lacks_are_null(client, served, monkeypatch):
    web = client()
    found = [[0.5, 0.4]], [[{"file": "half\ud800.png", "size": float("nan")}, 3]]
    monkeypatch.setattr(GalleryIndex, "search", lambda *_: found)
    (results,) = results_of(web.get("/search", params={"q": "red"}))
    assert results == [{"score": 0.5, "item": {"file": "half\ud800.png", "size": None}}, {"score": 0.4, "item": 3}]


def test_another_model_is_refused(served, tiny_model, tmp_path, capsys):
    from hf_vse.model.modeling_vse import VSEModel

    model = VSEModel.from_pretrained(tiny_model)
    model.text_model.embedding.weight.data += 1
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="with other weights|use one model for both"):
        make_app(open_store(served.folder), load_encoder(str(tmp_path)))
    assert main(["serve", str(served.folder), "--port", "0", "--model", str(tmp_path), "--json"]) == 1
    assert "use one model for both" in json.loads(capsys.readouterr().out)["error"]


def test_a_gallery_that_another_model_makes_meanwhile_is_refused(client, served, monkeypatch):
    """As in an engine, where it takes the place of the first."""
    gallery = open_store(served.folder)
    web: TestClient = client(gallery=gallery)
    monkeypatch.setitem(gallery.gallery.facts, "digest", "another")
    assert web.get("/search", params={"q": "red"}).status_code == 500
