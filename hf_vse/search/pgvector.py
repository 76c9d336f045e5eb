"""A gallery in PostgreSQL with pgvector: a table for each gallery and model; the table `hf_vse_galleries` names it.

    postgresql://user@host:5432/database/photos?sslmode=verify-full

What libpq reads holds here: `PGPASSWORD` or `~/.pgpass` for the password, `sslmode` for TLS. Vectors are stored as
they are; an approximate index holds them in half precision (`halfvec`), and what it finds is compared again.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import numpy as np

from hf_vse.search.engine import EngineStore, Found
from hf_vse.search.filters import Condition, as_number
from hf_vse.search.plan import Plan
from hf_vse.search.pushdown import equal_keys, equal_marks, folded_text, known_of, storable_text
from hf_vse.search.store import READ_AT_ONCE, GalleryRow

try:
    import psycopg
except ImportError as error:
    raise ImportError("a gallery in PostgreSQL needs psycopg: pip install 'hf_vse[pgvector]'") from error

CONNECT_TIMEOUT = 10  # seconds
STATEMENT_TIMEOUT = 60
ATTEMPTS = 3  # where the connection is lost; every statement may be repeated
PAUSE = 0.5  # seconds before the second
TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
MOST_EFFORT_OF_HNSW = 1000
OWN_BUILD_MEMORY, MOST_BUILD_MEMORY = 64, 4096  # megabytes: what a server gives unasked, and what is asked for at most
RERANKED = 2  # candidates of half precision for each result
HEADER_BYTES = 4  # of a vector as `vector_send` gives it
FIELDS = "name, entry, normalizer, active"

Where = tuple[str, list[Any]]  # a part of a statement and its values


class PgVectorStore(EngineStore):
    """See `EngineStore`."""

    kinds = {"exact": "", "hnsw": "hnsw", "ivf": "ivfflat"}
    answers_in_part = False  # one server, and every statement sees one state of it

    def __init__(self, location: str):
        place = urlsplit(location)
        path, _, name = place.path.rpartition("/")
        if not TABLE_NAME.fullmatch(name) or "/" in path.strip("/"):
            raise ValueError(f"{without_password(location)} must be postgresql://HOST:PORT/DATABASE/NAME, "
                             "NAME of at most 40 letters, digits and _")  # fmt: skip
        if place.password is not None or "password" in parse_qs(place.query):
            raise ValueError("a location holds no password: set PGPASSWORD, or write it to ~/.pgpass")
        super().__init__(location, name)
        self.address = urlunsplit(place._replace(path=path or "/"))
        self.connection: psycopg.Connection | None = None

    def call(self, work: Callable[[psycopg.Connection], Any]) -> Any:
        """Runs statements; again where the connection was lost.

        Raises:
            OSError: the database cannot be reached, or refuses.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work(self.opened())
            except psycopg.Error as error:
                lost = self.connection is None or self.connection.closed
                if not lost or attempt == ATTEMPTS:
                    raise OSError(f"{self.location}: {' '.join(str(error).split()):.300}") from error
                time.sleep(PAUSE * attempt)

    def opened(self) -> psycopg.Connection:
        if self.connection is None or self.connection.closed:
            options = f"-c statement_timeout={STATEMENT_TIMEOUT}s"
            self.connection = psycopg.connect(
                self.address, autocommit=True, connect_timeout=CONNECT_TIMEOUT, options=options
            )
        return self.connection

    def ask(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        return self.call(lambda connection: connection.execute(statement, values).fetchall())

    def tell(self, statement: str, values: Sequence[Any] = ()) -> None:
        self.call(lambda connection: connection.execute(statement, values))

    def current(self) -> tuple[str, dict[str, Any]] | None:
        if not self.has_table("hf_vse_galleries"):
            return None
        found = self.ask("select place, facts from hf_vse_galleries where name = %s", [self.name])
        return (found[0][0], json.loads(found[0][1])) if found else None

    def has_table(self, table: str) -> bool:
        return self.ask("select to_regclass(%s)", [f'"{table}"'])[0][0] is not None

    def create(self, table: str, dim: int, plan: Plan) -> None:
        if not self.ask("select to_regtype('vector')")[0][0]:
            self.tell("create extension if not exists vector")
        self.tell(
            "create table if not exists hf_vse_galleries (name text primary key, place text not null, facts text)"
        )
        self.tell(
            f'create table if not exists "{table}" (name text collate "C" primary key, version text not null, '
            "entry text not null, known jsonb not null, normalizer real not null, active boolean not null, "
            f"embeds vector({dim}) not null)"
        )
        self.tell(f'create index if not exists "{table}_known" on "{table}" using gin (known jsonb_path_ops)')

    def make_current(self, table: str, facts: dict[str, Any]) -> None:
        self.tell(
            "insert into hf_vse_galleries values (%s, %s, %s) "
            "on conflict (name) do update set place = excluded.place, facts = excluded.facts",
            [self.name, table, json.dumps(facts)],
        )

    def drop(self, table: str) -> None:
        self.tell(f'drop table if exists "{table}"')

    def build_index(self, table: str, plan: Plan) -> None:
        if plan.kind == "exact" or self.has_table(f"{table}_{plan.kind}"):
            return
        count, dim = self.ask(f'select count(*), min(vector_dims(embeds)) from "{table}"')[0]
        options = "m = 32, ef_construction = 160" if plan.kind == "hnsw" else f"lists = {max(1, count // 1000)}"
        statement = f'create index if not exists "{table}_{plan.kind}" on "{table}" using {plan.factory} '
        statement += f"((embeds::halfvec({dim})) halfvec_ip_ops) with ({options})"

        def work(connection: psycopg.Connection) -> None:
            try:
                build(connection, build_memory(count, dim))
            except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory):
                # shared memory is often small in containers
                build(connection, 0)

        def build(connection: psycopg.Connection, megabytes: int) -> None:
            with connection.transaction():
                connection.execute("set local statement_timeout = 0")
                if megabytes > OWN_BUILD_MEMORY:
                    connection.execute(f"set local maintenance_work_mem = '{megabytes}MB'")
                connection.execute(statement)

        self.call(work)

    def filter_of(self, conditions: Sequence[Condition]) -> Where | None:
        if not conditions:
            return None
        parts = [expression_of(condition) for condition in conditions]
        return " and ".join(f"({text})" for text, _ in parts), [value for _, values in parts for value in values]

    def of_names(self, names: Sequence[str]) -> Where:
        return "name = any(%s)", [list(names)]

    def of_hubs(self) -> Where:
        return "active", []

    def below(self, name: str) -> Where:
        return "name < %s", [name]

    def count(self, table: str, where: Where | None = None, latest: bool = True) -> int:
        text, values = where or ("true", [])
        return self.ask(f'select count(*) from "{table}" where {text}', values)[0][0]

    def nearest(self, table: str, queries: np.ndarray, k: int, where: Where | None, plan: Plan, exact: bool) -> Found:
        text, values = where or ("true", [])
        dim = queries.shape[1]
        candidates = f'select * from "{table}" where {text}'  # ordered by the vectors themselves no index is used
        settings = {}
        if not exact and plan.kind != "exact":
            candidates += f" order by embeds::halfvec({dim}) <#> %s::halfvec({dim}) limit {RERANKED * k}"
            effort = min(MOST_EFFORT_OF_HNSW, max(plan.effort, RERANKED * k))
            settings = {"hnsw.ef_search": effort, "hnsw.iterative_scan": "relaxed_order"}
            settings = settings if plan.kind == "hnsw" else {"ivfflat.probes": plan.effort}
        statement = f"with found as materialized ({candidates}) " if settings else f"with found as ({candidates}) "
        statement += f"select {FIELDS}, -(embeds <#> %s::vector) as score from found order by score desc limit {k}"

        def work(connection: psycopg.Connection) -> Found:
            with connection.transaction():
                for name, value in settings.items():
                    connection.execute("select set_config(%s, %s, true)", [name, str(value)])
                found = []
                for query in map(written, queries):
                    asked = [*values, query, query] if settings else [*values, query]
                    hits = connection.execute(statement, asked).fetchall()
                    found.append([(float(score), stored_row(*fields)) for *fields, score in hits])
                return found

        return self.call(work)

    def stored_versions(self, table: str) -> dict[str, str]:
        return dict(self.ask(f'select name, version from "{table}"'))

    def read(self, table: str, where: Where | None = None) -> Iterator[tuple[list[GalleryRow], np.ndarray]]:
        text, values = where or ("true", [])
        statement = f'select {FIELDS}, vector_send(embeds) from "{table}" where ({text}) and name > %s '
        statement += f"order by name limit {READ_AT_ONCE}"
        last = ""
        while page := self.ask(statement, [*values, last]):
            vectors = [np.frombuffer(each[-1], ">f4", offset=HEADER_BYTES) for each in page]
            yield [stored_row(*fields) for *fields, _ in page], np.stack(vectors).astype(np.float32)
            last = page[-1][0]

    def write(self, table: str, rows: Sequence[GalleryRow], versions: Sequence[str], embeds: np.ndarray) -> None:
        names = ("name", "version", "entry", "known", "normalizer", "active", "embeds")
        replaced = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        statement = f'insert into "{table}" values (%s, %s, %s, %s, %s, %s, %s) '
        statement += f"on conflict (name) do update set {replaced}"
        values = [
            (row.name, version, json.dumps([row.key, row.place, row.item]), json.dumps(known_of(row.item)))
            + (row.normalizer, row.active, written(vector))
            for row, version, vector in zip(rows, versions, embeds, strict=True)
        ]

        def work(connection: psycopg.Connection) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(statement, values)

        self.call(work)

    def remove(self, table: str, names: Sequence[str]) -> None:
        self.tell(f'delete from "{table}" where name = any(%s)', [list(names)])


def build_memory(count: int, dim: int) -> int:
    """Megabytes that hold a graph while it is built: half precision, and 64 neighbours with room to spare."""
    return min(MOST_BUILD_MEMORY, round(1.3 * count * (2 * dim + 2048) / 2**20) + 1)


def expression_of(condition: Condition) -> Where:
    """A condition in SQL on what `pushdown.py` describes; a missing field is null there and fulfils nothing."""
    field, op, value = condition
    if op == "=":
        asked = [json.dumps({field: {"is": [each]}}) for each in equal_marks(value)]
        return " or ".join(["known @> %s::jsonb"] * len(asked)), asked
    if op == "!=":
        return "known->%s->>'key' <> all(%s)", [field, equal_keys(value)]
    if op == "~":
        return "strpos(known->%s->>'text', %s) > 0", [field, folded_text(value)]
    number, most = as_number(value), op[0] == ">"
    if number is not None:
        return f"(known->%s->>'{'high' if most else 'low'}')::numeric {op} %s::numeric", [field, repr(number)]
    return f"known->%s->>'{'last' if most else 'first'}' collate \"C\" {op} %s", [field, storable_text(value)]


def written(vector: np.ndarray) -> str:
    return f"[{','.join(map(repr, vector.tolist()))}]"


def stored_row(name: str, entry: str, normalizer: float, active: bool) -> GalleryRow:
    key, place, item = json.loads(entry)
    return GalleryRow(name, key, item, place, normalizer, active)


def without_password(location: str) -> str:
    return re.sub(r"//[^/@]*@", "//...@", location.partition("?")[0])
