"""A local HTTP server with the endpoints of the Hugging Face Hub that downloads of datasets use."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``datasets``, name -> revision -> folder; those in ``gated`` require the token."""

    def __init__(self, datasets: dict[str, dict[str, Path]], gated: set[str], token: str = "hf_right") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.datasets, self.gated, self.token = datasets, gated, token
        self.downloads: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for name, revisions in self.server.datasets.items():
            for revision, folder in revisions.items():
                if path == f"/api/datasets/{name}/tree/{revision}":
                    return self._tree(folder)
                prefix = f"/datasets/{name}/resolve/{revision}/"
                if path.startswith(prefix):
                    return self._file(name, folder, path.removeprefix(prefix))
            if path.startswith(f"/api/datasets/{name}/tree/"):
                return self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _tree(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = [
            {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0" * 40}
            for f in files
        ]
        self._reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, folder: Path, path: str) -> None:
        if name in self.server.gated:
            header = self.headers.get("Authorization", "")
            if header != f"Bearer {self.server.token}":
                return self._reply(403 if header else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        content = (folder / path).read_bytes()
        if self.command == "GET":
            self.server.downloads.append(path)
        etag = hashlib.sha256(content).hexdigest()
        return self._reply(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(datasets: dict[str, dict[str, Path]], gated: set[str]) -> Iterator[Hub]:
    """Serve for the duration of the block."""
    hub = Hub(datasets, gated)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
