"""The endpoints of the Hugging Face Hub that its client uses to create and commit to models, and to read datasets."""

import base64
import hashlib
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_RightTokenOfTheTests0123456789"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Accepts repositories of ``owner`` with the token; ``repositories`` has the committed files.

    Serves ``datasets``, name -> revision -> folder; those in ``gated`` require the token.
    """

    def __init__(self, datasets: Mapping[str, Mapping[str, Path]] | None = None, gated: Collection[str] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.datasets, self.gated = datasets or {}, gated
        self.downloads: list[str] = []
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.large: dict[str, bytes] = {}
        """Contents by SHA-256, as in Git LFS."""
        self.requests: list[str] = []
        self.role = "write"
        """The permission of the token."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path.startswith(("/api/datasets/", "/datasets/")):
            return self._dataset(path)
        self.server.requests.append(f"{self.command} {path}")
        if path.startswith("/storage/"):  # a signed address: no token
            return self._store(path.removeprefix("/storage/"))
        if path == "/api/validate-yaml":
            return self._validate()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": "owner", "auth": {"accessToken": {"role": self.server.role}}})
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        name = next((name for name in self.server.repositories if f"/{name}" in path), None)
        if name is None:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if path == f"/api/models/{name}":
            return self._answer(200, {"id": name, "siblings": []})
        if path == f"/api/models/{name}/preupload/main":
            return self._choose(json.loads(self.body))
        if path == f"/{name}.git/info/lfs/objects/batch":
            return self._batch(json.loads(self.body))
        if path == f"/api/models/{name}/commit/main":
            return self._commit(name)
        return self._answer(404, {"error": f"not implemented: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _dataset(self, path: str) -> None:
        for name, revisions in self.server.datasets.items():
            for revision, folder in revisions.items():
                main = [f"/api/datasets/{name}"] if revision == "main" else []
                if path in (f"/api/datasets/{name}/revision/{revision}", *main):
                    files = sorted(each for each in folder.rglob("*") if each.is_file())
                    listed = [
                        {"rfilename": str(each.relative_to(folder)), "size": each.stat().st_size} for each in files
                    ]
                    return self._answer(200, {"id": name, "sha": COMMIT, "siblings": listed})
                if path.startswith(prefix := f"/datasets/{name}/resolve/{revision}/"):
                    return self._dataset_file(name, folder, path.removeprefix(prefix))
            if path.startswith(f"/api/datasets/{name}/revision/"):
                return self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        return self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})

    def _dataset_file(self, name: str, folder: Path, path: str) -> None:
        token = self.headers.get("Authorization", "")
        if name in self.server.gated and token != f"Bearer {TOKEN}":
            return self._answer(403 if token else 401, {}, {"X-Error-Code": "GatedRepo"})
        content = (folder / path).read_bytes()
        if self.command == "GET":
            self.server.downloads.append(path)
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
        if not name.startswith("owner/"):
            return self._answer(403, {"error": f"You don't have the rights to create a model under {name}"})
        if name in self.server.repositories:
            return self._answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        self.server.repositories[name] = {}
        return self._answer(200, {"url": f"{self.server.url}/{name}"})

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        metadata = yaml.safe_load(content.split("---\n")[1])
        errors = [] if metadata["model-index"][0]["results"][0]["metrics"] else [{"message": "no metrics"}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _choose(self, request: dict[str, Any]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in request["files"]
        ]
        self._answer(200, {"files": modes})

    def _batch(self, request: dict[str, Any]) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.server.url}/storage/{entry['oid']}"}}}
            for entry in request["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, digest: str) -> None:
        right = hashlib.sha256(self.body).hexdigest() == digest
        if right:
            self.server.large[digest] = self.body
        self._answer(200 if right else 400, {})

    def _commit(self, name: str) -> None:
        files = {}
        for entry in map(json.loads, self.body.splitlines()):
            value = entry["value"]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.large[value["oid"]]
        self.server.repositories[name] |= files
        self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        """Answer with bytes, or with JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub_server(datasets: Mapping[str, Mapping[str, Path]] | None = None, gated: Collection[str] = ()) -> Iterator[Hub]:
    """Run the server on loopback."""
    with Hub(datasets, gated) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
