"""A local fake of EC2's instance metadata service (IMDSv2)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

NOTICE = {"action": "terminate", "time": "2026-11-21T12:00:00Z"}


class MetadataServer(ThreadingHTTPServer):
    """Serves ``values``, and the notice after ``notice_after`` requests. Rejects requests without its token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.values: dict[str, str] = {}
        self.notice_after = 0.0
        self.questions = 0
        self.tokens = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self.server.tokens += known
        self._answer(200 if known else 400, f"token-{self.server.tokens}")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != f"token-{self.server.tokens}":
            return self._answer(401, "")
        self.server.questions += 1
        name = self.path.removeprefix("/latest/meta-data/")
        if name in self.server.values:
            return self._answer(200, self.server.values[name])
        due = name == "spot/instance-action" and self.server.questions > self.server.notice_after
        return self._answer(200, json.dumps(NOTICE)) if due else self._answer(404, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    """Run the server on loopback within the context."""
    with MetadataServer() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
