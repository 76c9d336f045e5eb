"""A small Hub on loopback: repositories in memory, enough of the protocol to push, list and load.

    with FakeHub() as hub:
        subprocess.run(command, env=os.environ | hub.environment(home))  # or hub.take_over(cache) in a forked process
        hub.repositories["models/org/name"].files["README.md"]

It knows models, data sets and Spaces, regular and LFS files, branches (as names of one state), byte ranges, and a
refused token. A POST to /break-after/N lets N more LFS blobs arrive and refuses the next: the line breaks once.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import transformers.utils.hub
from huggingface_hub import constants, hf_api

LFS_SUFFIXES = (".safetensors", ".parquet", ".onnx", ".png", ".bin", ".pt", ".pth")
TOKEN = "hf_fake"
API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+?)(?:/(\w[\w-]*)(?:/([^/]+))?(?:/(.*))?)?")
RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/(?:(?:datasets|spaces)/)?[^/]+/[^/]+\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """One repository: the files of its last commit, how many commits there were, and what a Space is set to."""

    created_with: dict
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[dict] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def blob_id(self, path: str) -> str:
        content = self.files[path]
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def entry(self, path: str) -> dict:
        """One line of a listing, as the Hub describes a file."""
        content = self.files[path]
        found = {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": self.blob_id(path)}
        if path in self.lfs:
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
        return found

    def listing(self, folder: str = "", recursive: bool = True) -> list[dict]:
        """Files and folders inside a folder."""
        inside = [path for path in sorted(self.files) if path.startswith(f"{folder}/" if folder else "")]
        found = {parent.as_posix() for path in inside for parent in PurePosixPath(path).parents} - {".", folder}
        folders = [
            {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()} for path in found
        ]
        entries = [*folders, *map(self.entry, inside)]
        direct = [each for each in entries if PurePosixPath(each["path"]).parent == PurePosixPath(folder)]
        return entries if recursive else direct

    def apply(self, operations: list[dict], blobs: dict[str, bytes]) -> None:
        for operation in operations:
            key, value = operation["key"], operation["value"]
            if key == "header":
                self.commits.append(value)
            elif key == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
                self.lfs.discard(value["path"])
            elif key == "lfsFile":
                self.files[value["path"]] = blobs[value["oid"]]
                self.lfs.add(value["path"])
            elif key == "deletedFile":
                self.files.pop(value["path"], None)


class FakeHub:
    """The server; `repositories` by "models/org/name", `uploads` the digests of the blobs that were sent."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.fail_after: int | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: str | Path, token: str = TOKEN) -> dict[str, str]:
        """The variables with which a new process takes this for the Hub, its caches under `home`."""
        caches = {"HF_HOME": str(home), "HF_MODULES_CACHE": str(Path(home) / "modules")}
        plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return caches | plain | {"HF_ENDPOINT": self.url, "HF_TOKEN": token}

    def take_over(self, cache: str | Path) -> None:
        """From here on this process, a forked one, takes this for the Hub; libraries read variables at import only."""
        constants.HF_HUB_OFFLINE = False
        constants.HF_HUB_DISABLE_XET = True
        constants.ENDPOINT = self.url
        constants.HUGGINGFACE_CO_URL_TEMPLATE = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_CACHE = str(cache)
        hf_api.api.endpoint = self.url  # that of the functions of the library
        transformers.utils.hub.hf_api().endpoint = self.url
        datasets.config.HF_ENDPOINT, datasets.config.HF_HUB_OFFLINE = self.url, False
        datasets.config.HF_DATASETS_CACHE = Path(cache) / "datasets"
        datasets.config.DOWNLOADED_DATASETS_PATH = datasets.config.HF_DATASETS_CACHE / "downloads"


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, content: object = b"", status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self) -> None:
        content = self.read()
        digest = self.path.rpartition("/")[2]
        with self.hub.lock:
            if self.hub.fail_after is not None and len(self.hub.uploads) >= self.hub.fail_after:
                self.hub.fail_after = None
                return self.refuse(400, "Broken", "the line broke")
            assert hashlib.sha256(content).hexdigest() == digest
            self.hub.blobs[digest] = content
            self.hub.uploads.append(digest)
        self.answer()

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.read()
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "", "Invalid username or password.")
        with self.hub.lock:
            if path.startswith("/break-after/"):
                self.hub.fail_after = len(self.hub.uploads) + int(path.rpartition("/")[2])
                return self.answer()
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if BATCH.fullmatch(path):
                return self.answer(self.batch(json.loads(body)))
            return self.change(API.fullmatch(path), body)

    def create(self, asked: dict) -> None:
        owner, kind = asked.get("organization") or "tester", asked.get("type", "model")
        name = f"{owner}/{asked['name']}"
        there = f"{kind}s/{name}" in self.hub.repositories
        self.hub.repositories.setdefault(f"{kind}s/{name}", Repository(asked))
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": "1"}
        self.answer(answer | ({"error": "You already created this repo"} if there else {}), 409 if there else 200)

    def batch(self, asked: dict) -> dict:
        objects = [{"oid": each["oid"], "size": each["size"]} for each in asked["objects"]]
        for each in objects:
            if each["oid"] not in self.hub.blobs:
                each["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def change(self, found: re.Match | None, body: bytes) -> None:
        kind, name, verb, *_ = found.groups() if found else (None, None, None)
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if verb == "preupload":
            return self.answer({"files": [self.mode(repository, each) for each in json.loads(body)["files"]]})
        if verb == "commit":
            repository.apply([json.loads(line) for line in body.splitlines() if line], self.hub.blobs)
            url = f"{self.hub.url}/{name}/commit/{repository.sha}"
            return self.answer({"success": True, "commitOid": repository.sha, "commitUrl": url})
        if verb == "variables":
            asked = json.loads(body)
            repository.variables[asked["key"]] = asked["value"]
            return self.answer({key: {"value": value} for key, value in repository.variables.items()})
        if verb == "paths-info":
            paths = parse_qs(body.decode()).get("paths", [])
            return self.answer([each for each in repository.listing() if each["path"] in paths])
        return self.answer({}) if verb == "branch" else self.refuse(404, "", f"no such call: {self.path}")

    def mode(self, repository: Repository, asked: dict) -> dict:
        path = asked["path"]
        mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
        known = {}
        if path in repository.files:
            content = repository.files[path]
            known["oid"] = hashlib.sha256(content).hexdigest() if path in repository.lfs else repository.blob_id(path)
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, **known}

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.answer({"type": "user", "name": "tester", "orgs": []})
        if found := API.fullmatch(path):
            return self.describe(*found.groups())
        if found := RESOLVE.fullmatch(path):
            return self.resolve(*found.groups())
        self.refuse(404, "", f"no such page: {path}")

    do_HEAD = do_GET

    def describe(self, kind: str, name: str, verb: str | None, _: str | None, folder: str | None) -> None:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if verb == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            found = repository.listing(folder or "", recursive)
            return self.answer(found) if found or not folder else self.refuse(404, "EntryNotFound", folder)
        if verb == "refs":
            return self.answer({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "0" * 40}],
                                "tags": [], "converts": []})  # fmt: skip
        card = {
            "id": name,
            "sha": repository.sha,
            "siblings": [repository.entry(path) for path in sorted(repository.files)],
            "private": False,
            "tags": [],
            "downloads": 0,
        }
        self.answer(card | {"disabled": False, "gated": False, "cardData": {}, "likes": 0})

    def resolve(self, kind: str | None, name: str, _: str, path: str) -> None:
        repository = self.hub.repositories.get(f"{kind or 'models'}/{name}")
        if repository is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        commit = {"X_Repo_Commit": repository.sha}
        if path not in repository.files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", **commit)
        content = repository.files[path]
        commit |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept_Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            span = {"Content_Range": f"bytes {first}-{last}/{len(content)}"}
            return self.answer(content[first : last + 1], 206, **commit, **span)
        self.answer(content, **commit)
