"""A gallery in Milvus: a collection for each gallery and model, and an alias that names it.

    milvus://host:19530/photos              or /database/photos; without encryption
    milvus+tls://host:19530/photos          with TLS
    milvus+lite:///tmp/galleries.db/photos  embedded in this process, for tests and small trials

The environment holds what is secret: `MILVUS_TOKEN` (user:password, or a key), `MILVUS_CA` (a file of certificates).
pymilvus repeats a call that could not reach the engine, with pauses, until `TIMEOUT`.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from hf_vse.embed.matrices import merge_best, no_candidates
from hf_vse.search.engine import EngineStore, Found
from hf_vse.search.filters import Condition, as_number
from hf_vse.search.plan import Plan
from hf_vse.search.pushdown import equal_keys, equal_marks, folded_text, known_of, storable_number, storable_text
from hf_vse.search.store import NAME_BYTES, READ_AT_ONCE, GalleryRow

# Processes that decode images are forked and do not talk to the engine; gRPC would try to repair itself in each.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
try:
    import grpc
    from pymilvus import DataType, MilvusClient, MilvusException
except ImportError as error:
    raise ImportError("a gallery in Milvus needs pymilvus: pip install 'hf_vse[milvus]'") from error

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs every error that it raises

TIMEOUT = 60.0  # seconds for a call with all its repetitions
LOADED_WITHIN = 20.0  # seconds that one who writes waits for a collection
QUERIES_AT_ONCE = 256
COMPARED_AT_ONCE = 5000  # rows: the engine looks for those that fulfil a filter anew for each part
MOST_RESULTS = 16_384  # of a query, a limit of Milvus
LONGEST_ITEM = 65_535  # bytes, another
FACTS = "hf_vse.gallery"  # the property of a collection that holds them
GALLERY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
PLAIN_FIELDS = ["id", "entry", "normalizer", "active"]
SEARCH_PARAMETER = {"hnsw": "ef", "ivf": "nprobe", "pq": "search_list"}
BUILD_PARAMETERS = {"hnsw": {"M": 32, "efConstruction": 160}, "ivf": {"nlist": 1024}}


class MilvusStore(EngineStore):
    """See `EngineStore`."""

    kinds = {"exact": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT", "pq": "DISKANN"}

    def __init__(self, location: str):
        place = urlsplit(location)
        uri, _, name = location.rpartition("/")
        if not GALLERY_NAME.fullmatch(name):
            raise ValueError(f"{location} must end in /NAME, letters, digits and _: the name of the gallery")
        if place.username is not None or place.password is not None:
            raise ValueError("a location holds no password: set MILVUS_TOKEN to user:password, or to a key")
        self.options = {"token": os.environ.get("MILVUS_TOKEN", ""), "timeout": TIMEOUT}
        if place.scheme == "milvus+lite":
            self.uri = uri.removeprefix("milvus+lite://")
            if not self.uri.endswith(".db"):
                raise ValueError(f"{location} must be milvus+lite://FILE.db/NAME")
            logging.getLogger("grpc._server").setLevel(logging.CRITICAL)  # it lacks a method that pymilvus tries
        else:
            secure = place.scheme == "milvus+tls"
            database = place.path.strip("/").rpartition("/")[0]
            if not place.hostname or "/" in database:
                raise ValueError(f"{location} must be {place.scheme}://HOST:PORT/NAME or /DATABASE/NAME")
            self.uri = f"{'https' if secure else 'http'}://{place.hostname}:{place.port or 19530}"
            self.options |= {"db_name": database}
            if secure and (certificates := os.environ.get("MILVUS_CA")):
                if not os.path.isfile(certificates):
                    raise FileNotFoundError(f"MILVUS_CA is {certificates}, but that is no file of certificates")
                self.options |= {"server_pem_path": certificates}
        super().__init__(location, name)
        self.client: MilvusClient | None = None

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A method of the client, opened when it is needed first.

        Raises:
            OSError: the engine cannot be reached, or refuses.
        """
        return self.answer(lambda: getattr(self.opened(), name)(*arguments, timeout=TIMEOUT, **options))

    def answer(self, asked: Callable[[], Any]) -> Any:
        try:
            return asked()
        except (MilvusException, grpc.RpcError) as error:
            message = " ".join(str(getattr(error, "message", "") or error).split())
            raise OSError(f"{self.location}: {message:.300}{'' if self.client else self.to_check()}") from error

    def to_check(self) -> str:
        """What may be wrong where no connection comes about; the engine does not tell."""
        token = f"MILVUS_TOKEN ({'set' if self.options['token'] else 'not set'})"
        if self.uri.startswith("https:"):
            authority = f"MILVUS_CA ({self.options.get('server_pem_path', 'not set')})"
            return f"; check host and port, {token}, the authority in {authority}"
        return f"; check host and port, {token}, and whether it wants TLS (milvus+tls://)"

    def opened(self) -> MilvusClient:
        if self.client is None:
            self.client = MilvusClient(self.uri, **self.options)
        return self.client

    def current(self) -> tuple[str, dict[str, Any]] | None:
        if not self.call("has_collection", self.name):
            return None
        described = self.call("describe_collection", self.name)
        text = (described.get("properties") or {}).get(FACTS)
        if text is None or described["collection_name"] == self.name:
            raise ValueError(f"{self.location} is a collection of something else: choose another name")
        return described["collection_name"], json.loads(text)

    def has_table(self, table: str) -> bool:
        return self.call("has_collection", table)

    def create(self, table: str, dim: int, plan: Plan) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, max_length=2 * NAME_BYTES, is_primary=True)
        schema.add_field("version", DataType.VARCHAR, max_length=64)
        schema.add_field("entry", DataType.VARCHAR, max_length=LONGEST_ITEM)
        schema.add_field("known", DataType.JSON)
        schema.add_field("normalizer", DataType.FLOAT)
        schema.add_field("active", DataType.BOOL)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        index = MilvusClient.prepare_index_params()
        parameters = BUILD_PARAMETERS.get(plan.kind, {})
        index.add_index("vector", index_type=plan.factory, metric_type="IP", params=parameters)
        self.call("create_collection", table, schema=schema, index_params=index, consistency_level="Bounded")

    def make_current(self, table: str, facts: dict[str, Any]) -> None:
        for _ in range(2):  # after a restart Milvus 2.3.5 has those before the last (milvus-io/milvus#30144)
            self.call("alter_collection_properties", table, {FACTS: json.dumps(facts)})
        there = self.call("has_collection", self.name)
        if not there or self.call("describe_collection", self.name)["collection_name"] != table:
            self.call("alter_alias" if there else "create_alias", table, self.name)

    def drop(self, table: str) -> None:
        self.call("drop_collection", table)

    def build_index(self, table: str, plan: Plan) -> None:
        """Milvus builds it as rows come in; the collection has to be loaded, to answer."""
        if not self.is_loaded(table):
            self.call("load_collection", table)

    def is_loaded(self, table: str) -> bool:
        return "Loaded" == getattr(self.call("get_load_state", table)["state"], "name", None)

    def filter_of(self, conditions: Sequence[Condition]) -> str | None:
        return " and ".join(f"({expression(condition)})" for condition in conditions) or None

    def of_names(self, names: Sequence[str]) -> str:
        return f"id in {json.dumps(list(names))}"

    def of_hubs(self) -> str:
        return "active == true"

    def below(self, name: str) -> str:
        return f'id < "{name}"'

    def count(self, table: str, where: str | None = None, latest: bool = True) -> int:
        end = time.monotonic() + (LOADED_WITHIN if latest else 0.0)  # another indexer may have just made it
        while not self.is_loaded(table):
            if time.monotonic() >= end:
                raise OSError(f"{self.location}: its collection {table} is not loaded, or not yet: repeat it later")
            time.sleep(0.2)
        options = {"consistency_level": level_of(latest), "output_fields": ["count(*)"]}
        return self.call("query", table, filter=where or "", **options)[0]["count(*)"]

    def nearest(self, table: str, queries: np.ndarray, k: int, where: str | None, plan: Plan, exact: bool) -> Found:
        if exact and plan.kind != "exact":
            return self.compared(table, queries, k, where)
        if k > MOST_RESULTS:
            raise ValueError(f"Milvus gives at most {MOST_RESULTS:,} results of a query, {k:,} are asked for: lower k")
        found: Found = []
        name = SEARCH_PARAMETER.get(plan.kind)
        parameters = {"metric_type": "IP", "params": {name: max(plan.effort, k)} if name else {}}
        options = {"limit": k, "filter": where or "", "output_fields": PLAIN_FIELDS, "anns_field": "vector"}
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            some = list(queries[start : start + QUERIES_AT_ONCE])
            for hits in self.call("search", table, data=some, search_params=parameters, **options):
                found.append([(float(hit["distance"]), row_of(hit["entity"] | {"id": hit["id"]})) for hit in hits])
        return found

    def compared(self, table: str, queries: np.ndarray, k: int, where: str | None) -> Found:
        """The nearest of few rows: they are read and compared here, as a filtered index misses many."""
        names: list[str] = []
        best = no_candidates(len(queries))
        for page in self.pages(table, where, ["id", "vector"], at_once=COMPARED_AT_ONCE):
            embeds = np.array([each["vector"] for each in page], np.float32)
            best = merge_best(best, queries @ embeds.T, len(names), k)
            names += [each["id"] for each in page]
        wanted = sorted({names[place] for place in best[1].ravel().tolist()})
        rows: dict[str, GalleryRow] = {}
        for start in range(0, len(wanted), READ_AT_ONCE):
            some = self.of_names(wanted[start : start + READ_AT_ONCE])
            options = {"output_fields": PLAIN_FIELDS, "consistency_level": level_of(latest=False)}
            rows |= {each["id"]: row_of(each) for each in self.call("query", table, filter=some, **options)}
        return [
            [(score, rows[names[place]]) for score, place in zip(*each, strict=True) if names[place] in rows]
            for each in zip(best[0].tolist(), best[1].tolist(), strict=True)
        ]

    def stored_versions(self, table: str) -> dict[str, str]:
        pages = self.pages(table, None, ["id", "version"], latest=True)
        return {each["id"]: each["version"] for page in pages for each in page}

    def read(self, table: str, where: str | None = None) -> Iterator[tuple[list[GalleryRow], np.ndarray]]:
        for page in self.pages(table, where, [*PLAIN_FIELDS, "vector"], latest=True):
            yield [row_of(each) for each in page], np.array([each["vector"] for each in page], np.float32)

    def pages(
        self, table: str, where: str | None, fields: list[str], latest: bool = False, at_once: int = READ_AT_ONCE
    ) -> Iterator[list[Any]]:
        """All rows that fulfil a filter, in ranges of their names, which are digests and so evenly spread.

        Raises:
            OSError: fewer than were counted.
        """
        count, read = self.count(table, where, latest), 0
        parts = max(1, -(-count // at_once))
        options = {"output_fields": fields, "limit": MOST_RESULTS, "consistency_level": level_of(latest)}
        for part in range(parts):
            limits = [f'id >= "{16**8 * part // parts:08x}"']
            limits += [f'id < "{16**8 * (part + 1) // parts:08x}"'] if part + 1 < parts else []
            limits += [f"({where})"] if where else []
            if page := self.call("query", table, filter=" and ".join(limits), **options):
                read += len(page)
                yield list(page)
        if read < count:
            raise OSError(f"{self.location}: {read:,} of {count:,} items were read: repeat it")

    def write(self, table: str, rows: Sequence[GalleryRow], versions: Sequence[str], embeds: np.ndarray) -> None:
        records = [
            {"id": row.name, "version": version, "entry": entry_of(row), "known": known_of(row.item)}
            | {"normalizer": row.normalizer, "active": row.active, "vector": vector}
            for row, version, vector in zip(rows, versions, embeds, strict=True)
        ]
        for row, record in zip(rows, records, strict=True):
            known = json.dumps(record["known"], ensure_ascii=False).encode()
            if max(len(record["entry"]), len(known)) > LONGEST_ITEM:
                raise ValueError(
                    f"item {row.item!r:.100} takes more than the {LONGEST_ITEM:,} bytes that Milvus holds"
                )
        self.call("upsert", table, data=records)

    def remove(self, table: str, names: Sequence[str]) -> None:
        self.call("delete", table, ids=list(names))


def expression(condition: Condition) -> str:
    """A condition in the language of Milvus; what it asks for is described in `pushdown.py`."""
    at, (_, op, value) = f'known["{condition.field}"]', condition
    if op == "=":
        return " or ".join(f'json_contains({at}["is"], "{each}")' for each in equal_marks(value))
    if op == "!=":
        return " and ".join([f'{at}["count"] > 0', *(f'{at}["key"] != "{each}"' for each in equal_keys(value))])
    if op == "~":
        return f'{at}["text"] like "%{folded_text(value)}%"'
    number, most = as_number(value), op[0] == ">"
    if number is not None:
        return f'{at}["{"high" if most else "low"}"] {op} {storable_number(number)!r}'
    return f'{at}["{"last" if most else "first"}"] {op} {json.dumps(storable_text(value), ensure_ascii=False)}'


def level_of(latest: bool) -> str:
    """`Strong` waits for all writes before, some 200 ms; `Bounded` may miss those of the last seconds."""
    return "Strong" if latest else "Bounded"


def entry_of(row: GalleryRow) -> str:
    """What is given back of a row, as ASCII: the name of a file may be no Unicode."""
    return json.dumps([row.key, row.place, row.item])


def row_of(stored: dict[str, Any]) -> GalleryRow:
    key, place, item = json.loads(stored["entry"])
    return GalleryRow(stored["id"], key, item, place, stored["normalizer"], bool(stored["active"]))
