"""The part of the Hub's HTTP interface that an upload speaks, in memory, with every fault that a test asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
LARGE = (".safetensors", ".model")  # what the Hub keeps in its store of large files


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """`fault` is asked before every request and may answer with a status; `asked` are the requests in order."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    fault: Callable[[str, str], int | None] = lambda method, path: None

    def __post_init__(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer("GET")

            def do_POST(self) -> None:
                self._answer("POST")

            def do_PUT(self) -> None:
                self._answer("PUT")

            def _answer(self, method: str) -> None:
                body, path = self._body(), unquote(urlsplit(self.path).path)
                hub.asked.append((method, path))
                status = hub.fault(method, path)
                if status is None and self.headers.get("Authorization") != f"Bearer {TOKEN}" and method != "PUT":
                    status = 401
                found = (status, {"error": f"fault {status}"}) if status else hub.answer(method, path, body)
                data = json.dumps(found[1]).encode()
                self.send_response(found[0])
                if found[0] == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                whole = b""
                while size := int(self.rfile.readline(), 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        if method == "PUT":
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name not in self.repositories:
                self.repositories[name] = Repository(asked["visibility"] == "private", {".gitattributes": b"*\n"})
            return 200, {"url": f"{self.url}/{name}", "id": name}
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        repository = self.repositories.get(f"{owner}/{name.removesuffix('.git')}")
        if repository is None:
            return 404, {"error": "Repository not found"}
        return self._of(repository, rest[0] if rest else "", body)

    def _of(self, repository: Repository, what: str, body: bytes) -> tuple[int, object]:
        if what == "tree":
            return 200, [_entry(path, data) for path, data in sorted(repository.files.items())]
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [
                {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
                for path in asked
            ]}  # fmt: skip
        if what == "info":  # the batch of large files: those that are there need no upload
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in self.objects:
                    one["actions"] = {"upload": {"href": f"{self.url}/store/{one['oid']}"}}
            return 200, {"transfer": "basic", "objects": objects}
        if what == "commit":
            self._commit(repository, [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/me/safer/commit/1", "commitOid": "1" * 40, "success": True}
        return 200, {"id": "x/y", "sha": "1" * 40, "private": repository.private, "siblings": []}

    def _commit(self, repository: Repository, lines: list[dict[str, dict[str, str]]]) -> None:
        for line in lines:
            kind, value = str(line["key"]), line["value"]
            if kind == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                repository.files[value["path"]] = self.objects[value["oid"]]
            elif kind == "deletedFile":
                del repository.files[value["path"]]
            else:
                repository.commits.append(value["summary"])


def _entry(path: str, data: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
