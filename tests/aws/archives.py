"""Small archives in the form of ILSVRC's, and an HTTP server with a BitTorrent tracker on loopback."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import scipy.io

from rebar.aws.download_imagenet import DEVKIT, TRAIN, VAL

SYNSETS = ("n01440764", "n02119789", "n03000684")
TRAIN_A_CLASS, VAL_A_CLASS = 4, 2
NUM_TRAIN, NUM_VAL = TRAIN_A_CLASS * len(SYNSETS), VAL_A_CLASS * len(SYNSETS)


def image(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def train_images() -> list[tuple[str, str, bytes]]:
    """Return (synset, file name, JPEG bytes) of every training image."""
    return [
        (synset, f"{synset}_{number}.JPEG", image(10 * place + number))
        for place, synset in enumerate(SYNSETS)
        for number in range(TRAIN_A_CLASS)
    ]


def val_images() -> list[tuple[str, str, bytes]]:
    return [
        (SYNSETS[number % len(SYNSETS)], f"ILSVRC2012_val_{number + 1:08}.JPEG", image(100 + number))
        for number in range(NUM_VAL)
    ]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def meta_mat() -> bytes:
    """Make the development kit's list of 1,000 synsets."""
    ids = range(1, 1001)
    names = [SYNSETS[number - 1] if number <= len(SYNSETS) else f"n{90000000 + number:08}" for number in ids]
    synsets = np.zeros((len(names), 1), [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    for place, (number, name) in enumerate(zip(ids, names, strict=True)):
        synsets[place, 0] = (number, name, 0)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def make_archives(folder: Path) -> Path:
    """Make the three archives of ImageNet's download page, and their MD5s in ``md5sums``."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / TRAIN, "w") as outer:
        for synset in SYNSETS:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for theirs, name, content in train_images():
                    if theirs == synset:
                        add(inner, name, content)
            add(outer, f"{synset}.tar", buffer.getvalue())
    with tarfile.open(folder / VAL, "w") as tar:
        for _, name, content in val_images():
            add(tar, name, content)
    with tarfile.open(folder / DEVKIT, "w:gz") as tar:
        ids = "".join(f"{SYNSETS.index(synset) + 1}\n" for synset, _, _ in val_images())
        kit = "ILSVRC2012_devkit_t12/data"
        add(tar, f"{kit}/ILSVRC2012_validation_ground_truth.txt", ids.encode())
        add(tar, f"{kit}/meta.mat", meta_mat())
    lines = [f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in (TRAIN, VAL, DEVKIT)]
    (folder / "md5sums").write_text("".join(lines))
    return folder


def make_kaggle_zip(path: Path) -> Path:
    """Make a zip like Kaggle's: images, labels, and files that are not needed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for synset, name, content in train_images():
            file.writestr(f"ILSVRC/Data/CLS-LOC/train/{synset}/{name}", content)
        for _, name, content in val_images():
            file.writestr(f"ILSVRC/Data/CLS-LOC/val/{name}", content)
            file.writestr(f"ILSVRC/Annotations/CLS-LOC/val/{name}.xml", "<annotation/>")
        labels = "".join(f"{name.partition('.')[0]},{synset} 1 2 3 4\n" for synset, name, _ in val_images())
        file.writestr("LOC_val_solution.csv", "ImageId,PredictionString\n" + labels)
    return path


# ------------------------------------------------------------------------------------------ servers


@dataclass
class Web:
    """A file server that supports ranges, records requests, and can break connections."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Contents by path."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(path with query, Range header)"""
    failures: int = 0
    """Number of responses whose connection is closed early."""
    bytes_before_failure: int = 0
    hold_open: bool = False
    """Stall instead of closing the connection."""
    content_type: str = "application/octet-stream"
    peers: list[tuple[str, int]] = field(default_factory=list)
    """The peers of the tracker at /announce."""
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts, requested_range = urlsplit(request.path), request.headers.get("Range", "")
        is_probe = requested_range == "bytes=0-0"  # for size and version
        if not is_probe:
            self.requests.append((request.path, requested_range))
        content = self.files.get(parts.path, b"")
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Content-Type": self.content_type}
        if parts.path == "/announce":
            self._announce(request, parts.query)
        elif parts.path not in self.files:
            self._send(request, 404, b"", {})
        elif requested_range:
            start, end = requested_range.removeprefix("bytes=").split("-")
            last = min(int(end or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            self._send(request, 206, content[int(start) : last + 1], headers, may_fail=not is_probe)
        else:
            self._send(request, 200, content, {"Accept-Ranges": "bytes", **headers})

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str],
        *,
        may_fail: bool = True,
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if content and self.failures and may_fail:
            self.failures -= 1
            request.close_connection = True
            request.wfile.write(content[: self.bytes_before_failure])
            while self.hold_open and request.connection.recv(1):
                pass  # until the client closes the connection
            return
        request.wfile.write(content)

    def _announce(self, request: BaseHTTPRequestHandler, query: str) -> None:
        """Answer as a BitTorrent tracker, with all peers."""
        peer = ("127.0.0.1", int(parse_qs(query, encoding="latin-1")["port"][0]))
        if peer not in self.peers:
            self.peers.append(peer)
        packed = b"".join(bytes(map(int, host.split("."))) + port.to_bytes(2, "big") for host, port in self.peers)
        self._send(request, 200, bencode({b"interval": 1, b"peers": packed}), {"Content-Type": "text/plain"})


@contextmanager
def serving() -> Iterator[Web]:
    """Run a web server on loopback."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(ConnectionError):  # aria2 closes a connection once it knows the size
                web.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


def bencode(value: Any) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencode, value)) + b"e"
    return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"


def make_torrent(path: Path, tracker: str, piece: int = 16384) -> tuple[bytes, str]:
    """Return the .torrent of a file, or of a folder of files, and its info hash."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    content = b"".join(file.read_bytes() for file in files)
    pieces = b"".join(hashlib.sha1(content[at : at + piece]).digest() for at in range(0, len(content), piece))
    info: dict[bytes, Any] = {b"name": path.name.encode(), b"piece length": piece, b"pieces": pieces}
    if path.is_dir():
        info[b"files"] = [{b"length": file.stat().st_size, b"path": [file.name.encode()]} for file in files]
    else:
        info[b"length"] = len(content)
    torrent = bencode({b"announce": tracker.encode(), b"info": info})
    return torrent, hashlib.sha1(bencode(info)).hexdigest()


def obtain(archives: Path, web: Web, to: Path, *sources: str) -> list[str | Path]:
    return ["data", "obtain", *sources, "--to", to, "--md5", archives / "md5sums", "--devkit", f"{web.url}/{DEVKIT}"]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "partial" in path.name or path.suffix in (".aria2", ".lock")]
