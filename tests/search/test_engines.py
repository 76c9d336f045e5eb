"""What an engine adds: the same commands, other weights beside, partial answers, approximate indexes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vse.cli.main import main
from hf_vse.search import engine as engine_module
from hf_vse.search import fill as fill_module
from hf_vse.search.locations import open_store
from tests.conftest import save_photographs
from tests.search.plain import PlainEncoder, fill
from tests.search.test_store import unit_vectors

TONES = """
import numpy as np
from hf_vse import Encoder

class Tones(Encoder):
    def encode_images(self, images):
        return np.stack([np.asarray(image.resize((4, 4)), np.float64).ravel() - 120 for image in images])
    def encode_texts(self, texts):
        return np.stack([np.random.default_rng(len(text)).normal(size=48) for text in texts])
"""
WHERE = ("--where", "year>=2004", "--where", "captions~R")


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many images each call of the encoder was given."""
    from hf_vse.search import build

    counts, encode = [], build.encode_images

    def counting(encoder, images, *others):
        store, keys = (others + (None,) * 5)[3:5]
        counts.append(len(images) if store is None else len(store.missing(keys)))
        return encode(encoder, images, *others)

    monkeypatch.setattr(build, "encode_images", counting)
    monkeypatch.setattr(fill_module, "encode_images", counting)
    return counts


@pytest.fixture
def tones(tmp_path) -> str:
    (tmp_path / "tones.py").write_text(TONES)
    return f"{tmp_path / 'tones.py'}:Tones"


def answer_of(capsys, *words: object) -> object:
    capsys.readouterr()
    assert main([*map(str, words), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def told(capsys, photographs: Path, place: str, model: str, encoded: list[int]) -> list:
    """The answers to a series of commands, and how many images they encoded."""

    def ask(*words: object) -> object:
        encoded.clear()
        answer = answer_of(capsys, *words)
        if "index" in answer:
            del answer["index"], answer["plan"]
        return [answer, sum(encoded)]

    bank = photographs.parent / "bank.txt"
    bank.write_text("a\nbb\nccc\ndddd\n")
    index = ("index", photographs, place, "--model", model)
    search = ("search", place, "a dog", "two dogs", "--model", model, "-k", 5)
    told = [ask(*index), ask(*search), ask(*search, *WHERE), ask(*index)]
    Image.open(photographs / "city/00.png").rotate(90).save(photographs / "city/new.png")
    Image.open(photographs / "city/04.png").rotate(90).save(photographs / "lake/03.png")
    (photographs / "lake/01.png").unlink()
    lines = (photographs / "metadata.jsonl").read_text().replace('"year": 2006', '"year": 1906')
    (photographs / "metadata.jsonl").write_text(lines)
    told += [ask(*index), ask(*search), ask(*search, "--where", "year<1950"), ask(*search, "--where", "file~LAKE")]
    told += [ask(*index, "--query_bank", bank), ask(*search, "--correction", "inverted_softmax")]
    told += [ask(*search, "--correction", "qbnorm", *WHERE), ask(*index, "--query_bank", bank)]
    return told


def rounded(value: object) -> object:
    """Scores that a difference in the last bit does not change."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return pytest.approx(value, abs=2e-4) if isinstance(value, float) else value


def test_the_same_commands_get_the_same_answers(engine, tmp_path, capsys, tones, encoded):
    expected, found = (
        told(capsys, save_photographs(tmp_path / name), place, tones, encoded)
        for name, place in (("one", str(tmp_path / "index")), ("two", engine))
    )
    assert [count for _, count in expected] == [12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert other == rounded(one), number
    assert answer_of(capsys, "index", engine, tmp_path / "copy")["items"] == 12
    assert main(["index", engine, str(tmp_path / "copy"), "--model", tones]) == 2
    assert "--model has no effect: a gallery is copied as it is" in capsys.readouterr().err
    copied, index = (open_store(tmp_path / name) for name in ("copy", "index"))
    assert copied.gallery.items == index.gallery.items
    np.testing.assert_array_equal(copied.gallery.embeds, index.gallery.embeds)
    other = engine.replace("gallery_", "copy_")
    assert answer_of(capsys, "index", tmp_path / "copy", other)["items"] == 12
    assert main(["search", other, "a", "--model", tones, "--where", "yaer>1", "--quiet"]) == 1
    assert "no item has 'yaer'; there are captions, file, year" in capsys.readouterr().err


def test_other_weights_are_built_beside_and_take_over_when_whole(engine, tmp_path):
    photographs = fill(tmp_path / "photographs", [f"{row}.png" for row in range(6)])
    open_store(engine).build(photographs, PlainEncoder("a"), progress=False)
    first, store = open_store(engine).whole()[0], open_store(engine)
    query = PlainEncoder("a").query("dogs")

    class Failing(PlainEncoder):
        def encode_images(self, images):
            assert open_store(engine).search(query, 6, PlainEncoder("a"))[1][0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(photographs, Failing("b"), progress=False)
    assert len(open_store(engine).search(query, 6, PlainEncoder("a"))[1][0]) == 6
    store.build(photographs, PlainEncoder("b"), progress=False)
    table, facts = store.whole()
    assert table != first and not store.has_table(first) and facts["digest"] == PlainEncoder("b").digest
    with pytest.raises(ValueError, match="with other weights or another preparation"):
        open_store(engine).search(query, 6, PlainEncoder("a"))


def test_an_interrupted_build_goes_on_where_it_was(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(fill_module, "ENCODED_AT_ONCE", 5)
    photographs = fill(tmp_path / "photographs", [f"{row:02d}.png" for row in range(12)])

    class Failing(PlainEncoder):
        def encode_images(self, images):
            if self.seen >= 10:
                raise KeyboardInterrupt
            return super().encode_images(images)

    with pytest.raises(KeyboardInterrupt):
        open_store(engine).build(photographs, Failing(), progress=False)
    with pytest.raises(FileNotFoundError, match="holds no gallery"):
        len(open_store(engine))
    encoder = PlainEncoder()
    open_store(engine).build(photographs, encoder, progress=False)
    assert encoder.seen == 2 and len(open_store(engine)) == 12


def test_broken_images_are_left_out_and_named(engine, tmp_path):
    photographs, encoder = fill(tmp_path / "photographs", [f"{row}.png" for row in range(6)]), PlainEncoder()
    open_store(engine).build(photographs, encoder, progress=False)
    (photographs / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 6 images are missing or broken"):
        open_store(engine).build(photographs, encoder, progress=False)
    assert len(open_store(engine)) == 6
    open_store(engine).build(photographs, encoder, max_broken_share=0.5, progress=False)
    store = open_store(engine)
    assert len(store) == 5 and store.facts["broken"] == ["2.png"]
    Image.new("RGB", (4, 4)).save(photographs / "2.png")
    store.build(photographs, encoder, progress=False)
    assert len(store) == 6 and store.facts["broken"] == []


def test_a_partial_answer_is_said(engine, monkeypatch):
    store, embeds = open_store(engine), unit_vectors(20)
    store.build_of_vectors(embeds, [{"row": row} for row in range(20)], PlainEncoder())
    assert len(store.search(embeds[:1], 30)[1][0]) == 20
    table, facts = store.whole()
    lost = store.stored_versions(table).popitem()[0]
    store.remove(table, [lost])
    with pytest.raises(OSError, match="only 19 of 20 items answer|got 19 results of 20 that there are"):
        store.search(embeds[:1], 30)
    store.make_current(table, facts | {"items": 19})
    assert len(store.search(embeds[:1], 30)[1][0]) == 19
    nearest = type(store).nearest

    def cut(self, *arguments, **options):
        return [found[:2] for found in nearest(self, *arguments, **options)]

    monkeypatch.setattr(type(store), "nearest", cut)
    with pytest.raises(OSError, match="a query got 2 results of 3 that there are"):
        store.search(embeds[:1], 3)


def test_an_approximate_index_is_measured_and_filters_are_exact(engine, monkeypatch):
    embeds, items = unit_vectors(400), [{"row": row, "part": row % 50} for row in range(400)]
    store = open_store(engine)
    store.build_of_vectors(embeds, items, PlainEncoder(), kind="hnsw")
    assert store.plan.kind == "hnsw" and store.plan.recall >= 0.95
    assert store.plan.measured_on.endswith("vectors of the gallery")
    queries = unit_vectors(5, seed=3)
    for limit in (engine_module.EXACT_BELOW, 0):  # compared one by one, and by the index
        monkeypatch.setattr(engine_module, "EXACT_BELOW", limit)
        for where, chosen in (("part=7", range(7, 400, 50)), ("part<25", [r for r in range(400) if r % 50 < 25])):
            scores, found = store.search(queries, 8, where=[where])
            rows = np.array(chosen)
            exact = -np.sort(-(queries @ embeds[rows].T), axis=1)[:, :8]
            if limit:
                np.testing.assert_allclose(scores, exact, atol=1e-6)
            assert all(item["row"] in chosen for of_query in found for item in of_query)
            assert scores.shape == (5, 8)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("milvus://localhost/no-name", "must end in /NAME"),
        ("milvus://user:secret@localhost/photos", "a location holds no password: set MILVUS_TOKEN"),
        ("milvus+lite:///tmp/galleries/photos", "must be milvus\\+lite://FILE.db/NAME"),
        ("milvus://localhost/a/b/c", "must be milvus://HOST:PORT/NAME"),
        ("mongo://localhost/photos", "is of no known kind"),
        ("postgresql://localhost/photos/my-name", "must be postgresql://HOST:PORT/DATABASE/NAME"),
        ("postgresql://me:secret@localhost/db/photos", "a location holds no password: set PGPASSWORD"),
        ("postgresql://localhost/db/photos?password=secret", "a location holds no password: set PGPASSWORD"),
    ],
)
def test_locations_that_cannot_be_are_refused(location, message):
    pytest.importorskip("pymilvus" if "milvus" in location else "psycopg")
    with pytest.raises(ValueError, match=message) as refused:
        open_store(location)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("package", "location", "setting", "to_check"),
    [
        ("pymilvus", "milvus://127.0.0.1:9/photos", "milvus.TIMEOUT", "MILVUS_TOKEN (set), and whether it wants TLS"),
        ("pymilvus", "milvus+tls://127.0.0.1:9/photos", "milvus.TIMEOUT", "the authority in MILVUS_CA (not set)"),
        ("psycopg", "postgresql://127.0.0.1:9/db/photos", "pgvector.PAUSE", "port 9 failed"),
    ],
)
def test_an_engine_that_is_not_there_is_one_line(capsys, monkeypatch, package, location, setting, to_check):
    pytest.importorskip(package)
    monkeypatch.setattr(f"hf_vse.search.{setting}", 0.1)
    monkeypatch.setenv("MILVUS_TOKEN", "me:a-secret")
    assert main(["search", location, "a", "--quiet"]) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {location}: ") and to_check in line and "a-secret" not in line


def test_an_authority_that_is_no_file_is_named(monkeypatch, tmp_path):
    pytest.importorskip("pymilvus")
    monkeypatch.setenv("MILVUS_CA", str(tmp_path / "ca.pem"))
    with pytest.raises(FileNotFoundError, match="MILVUS_CA is .*ca.pem, but that is no file of certificates"):
        open_store("milvus+tls://127.0.0.1:9/photos")


def test_a_collection_of_something_else_is_left_alone(milvus):
    from pymilvus import MilvusClient

    client = MilvusClient(milvus.removeprefix("milvus+lite://").removesuffix("/{}"))
    client.create_collection("theirs", dimension=4)
    with pytest.raises(ValueError, match="is a collection of something else: choose another name"):
        open_store(milvus.format("theirs")).check_place()


def test_who_writes_to_milvus_waits_for_a_collection_that_another_has_just_made(milvus, monkeypatch):
    store, states = open_store(milvus.format("waited")), [False, False, True]
    store.build_of_vectors(unit_vectors(5), None, PlainEncoder())
    table = store.whole()[0]
    monkeypatch.setattr(type(store), "is_loaded", lambda self, table: states.pop(0))
    with pytest.raises(OSError, match="is not loaded, or not yet: repeat it later"):
        store.count(table, latest=False)
    assert store.count(table) == 5 and not states
    monkeypatch.setattr("hf_vse.search.milvus.LOADED_WITHIN", 0.0)
    states.append(False)
    with pytest.raises(OSError, match="is not loaded"):
        store.count(table)


def test_a_lost_connection_is_opened_again(postgresql):
    import psycopg

    store = open_store(postgresql.format("reopened"))
    store.build_of_vectors(unit_vectors(5), None, PlainEncoder())
    with psycopg.connect(store.address) as other:
        other.execute("select pg_terminate_backend(%s)", [store.connection.info.backend_pid])
    assert len(store.search(unit_vectors(2), 3)[1]) == 2
    with pytest.raises(OSError, match='relation "nothing" does not exist'):
        store.ask("select * from nothing")


def test_a_graph_is_built_in_memory_that_holds_it_or_in_what_the_server_has(postgresql, monkeypatch):
    import psycopg

    from hf_vse.search.pgvector import build_memory

    assert 150 < build_memory(50_000, 512) < 300 and build_memory(10**9, 512) == 4096
    monkeypatch.setattr("hf_vse.search.pgvector.OWN_BUILD_MEMORY", 0)
    asked, execute = [], psycopg.Connection.execute

    def full(self, statement, *values, **options):
        asked.append(statement)
        if "using hnsw" in statement and sum("using hnsw" in each for each in asked) == 1:
            raise psycopg.errors.DiskFull("could not resize shared memory segment")
        return execute(self, statement, *values, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", full)
    store = open_store(postgresql.format("built"))
    store.build_of_vectors(unit_vectors(300), None, PlainEncoder(), kind="hnsw")
    asked_for = [each for each in asked if "maintenance_work_mem" in each or "using hnsw" in each]
    assert [each.split()[0] for each in asked_for] == ["set", "create", "create"] and "MB'" in asked_for[0]
    assert store.plan.kind == "hnsw" and len(store) == 300
