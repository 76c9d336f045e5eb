"""Tokens and TLS with real servers: who has both is answered as by a folder, and who has not gets a line that says so.

    python scripts/benchmarks/engine_secrets.py --programs .venv-engines [--output FILE]

`make engines` runs it. Milvus is started with users and with a certificate of an authority that is made here
(`openssl`); PostgreSQL with passwords, on TCP, and without TLS, which its package does not have.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine_commands import MODEL, equal, make_pictures, run
from engine_servers import Milvus, PostgreSQL, private_network
from measuring import record

from hf_vse.evaluation.environment import environment

SECRETS = ("MILVUS_TOKEN", "MILVUS_CA", "PGPASSWORD")
RIGHT_TOKEN, PASSWORD = "root:Milvus", "a pass:word@1"  # the first is that of a new server of Milvus


class GuardedMilvus(Milvus):
    """With users, and with TLS by a certificate for 127.0.0.1 that `ca.pem` in its folder has signed."""

    location = Milvus.location.replace("milvus://", "milvus+tls://")

    def start(self) -> None:
        make_certificates(self.folder)
        super().start()

    def settings(self, role: str) -> dict:
        settings = super().settings(role)
        settings["common"]["security"] |= {"authorizationEnabled": True, "tlsMode": 1}
        settings["tls"] = {"serverPemPath": "server.pem", "serverKeyPath": "server.key", "caPemPath": "ca.pem"}
        settings["tls"] = {name: str(self.folder / file) for name, file in settings["tls"].items()}
        return settings


class GuardedPostgreSQL(PostgreSQL):
    """On TCP, where everybody needs a password."""

    listen = "127.0.0.1"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.location = "postgresql://postgres@127.0.0.1:5432/postgres/photos"

    def start(self) -> None:
        super().start()
        (self.folder / "data/pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        told = [f"alter user postgres password '{PASSWORD}'", "select pg_reload_conf()"]
        words = [word for each in told for word in ("-c", each)]
        subprocess.run([self.programs / "psql", "-h", self.folder, "-U", "postgres", "-qAt", *words], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        time.sleep(1)  # until it has read who may come in


def make_certificates(folder: Path) -> None:
    """`ca.pem`; `server.pem` and `server.key` that it signed; `other.pem` of another authority."""
    for authority in ("ca", "other"):
        openssl(folder, f"req -x509 -newkey rsa:2048 -nodes -keyout {authority}.key -out {authority}.pem -days 2 "
                f"-subj /CN={authority}")  # fmt: skip
    openssl(folder, "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(folder, "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 "
            "-extfile names")  # fmt: skip


def openssl(folder: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)


@contextmanager
def secrets(values: dict[str, str]) -> Iterator[None]:
    """These in the environment, and no others."""
    before = {name: os.environ.pop(name, None) for name in SECRETS}
    os.environ |= values
    try:
        yield
    finally:
        for name in SECRETS:
            os.environ.pop(name, None)
        os.environ |= {name: value for name, value in before.items() if value is not None}


def asked(data: Path, place: str, values: dict[str, str]) -> tuple[int, Any, float]:
    """Exit code and answer of a search, and its seconds; in a process of its own, as connections are kept."""
    words = ["search", place, "a dog", "--model", f"{data / 'tones.py'}:Tones", "--where", "year>2003"]
    with secrets(values), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(run, ["--version"]).exception()  # it has imported what it needs
        begun = time.monotonic()
        code, answer = pool.submit(run, words).result()
    return code, answer, round(time.monotonic() - begun, 1)


def row(data: Path, expected: Any, place: str, who: str, values: dict[str, str], let_in: bool) -> dict[str, Any]:
    """What one who has these secrets was answered, and whether it is as it has to be; `expected` is of the folder."""
    code, answer, seconds = asked(data, place, values)
    right = code != 0 or equal(answer, expected)
    said = "" if code == 0 else str(answer).replace(place, "GALLERY").replace(str(data.parent), "FOLDER")
    found = {"who": who, "let_in": code == 0, "as_it_has_to_be": right and (code == 0) == let_in}
    secret = any(value in said for name, value in values.items() if name != "MILVUS_CA")
    found |= {"said": said, "says_the_secret": secret, "s": seconds}
    print(found, file=sys.stderr, flush=True)
    return found


def of_milvus(work: Path, data: Path, expected: Any, programs: Path) -> list[dict[str, Any]]:
    with GuardedMilvus(work / "milvus", programs) as server:
        place, authority = f"{server.location}/photos", str(server.folder / "ca.pem")
        right = {"MILVUS_TOKEN": RIGHT_TOKEN, "MILVUS_CA": authority}
        with secrets(right):
            index(data, place)
        plain = place.replace("milvus+tls://", "milvus://")
        return [
            row(data, expected, place, "Milvus: token and authority", right, True),
            row(data, expected, place, "Milvus: no token", {"MILVUS_CA": authority}, False),
            row(data, expected, place, "Milvus: wrong token", right | {"MILVUS_TOKEN": "root:guessed"}, False),
            row(data, expected, place, "Milvus: authority unknown", {"MILVUS_TOKEN": RIGHT_TOKEN}, False),
            row(data, expected, place, "Milvus: another authority",
                right | {"MILVUS_CA": str(server.folder / "other.pem")}, False),
            row(data, expected, plain, "Milvus: without TLS", right, False),
            row(data, expected, place, "Milvus: token and authority, at last", right, True),  # it was there
        ]  # fmt: skip


def of_postgresql(work: Path, data: Path, expected: Any) -> list[dict[str, Any]]:
    with GuardedPostgreSQL(work / "postgresql") as server:
        place, right = server.location, {"PGPASSWORD": PASSWORD}
        with secrets(right):
            index(data, place)
        demanded = f"{place}?sslmode=require"
        return [
            row(data, expected, place, "PostgreSQL: password", right, True),
            row(data, expected, place, "PostgreSQL: no password", {}, False),
            row(data, expected, place, "PostgreSQL: wrong password", {"PGPASSWORD": "guessed"}, False),
            row(data, expected, demanded, "PostgreSQL: TLS demanded, the server has none", right, False),
            row(data, expected, place, "PostgreSQL: password, at last", right, True),  # it was there
        ]


def index(data: Path, place: str) -> None:
    code, answer = run(["index", str(data / "pictures"), place, "--model", f"{data / 'tones.py'}:Tones"])
    if code:
        raise OSError(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, help="folder with the package milvus, as `make engines` fills it")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    private_network()
    with tempfile.TemporaryDirectory(prefix="secrets") as name:
        work, data = Path(name), Path(name) / "data"
        work.chmod(0o755)  # PostgreSQL is another user there
        make_pictures(data / "pictures")
        (data / "tones.py").write_text(MODEL.replace("SALT", "120"))
        folder = str(work / "index")
        index(data, folder)
        expected = asked(data, folder, {})[1]
        rows = of_postgresql(work, data, expected) + of_milvus(work, data, expected, arguments.programs)
    record({"command": " ".join(sys.argv), "rows": rows, "environment": environment()}, arguments.output)
    if bad := [each for each in rows if not each["as_it_has_to_be"] or each["says_the_secret"]]:
        sys.exit("\n".join(map(str, bad)))


if __name__ == "__main__":
    main()
