"""One file from a web server: gone on with after a kill, checked, and named only when it is whole."""

import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebar.aws.archives import md5_of
from rebar.aws.client import AwsError, without_secrets
from rebar.aws.progress import Progress
from rebar.storage.atomic_write import sync_folder

CHUNK = 2**20
TRIES = 6
"""So often in a row without a single byte."""
RETRY_SECONDS = 1.0
SILENCE_SECONDS = 60.0
GIB = 2**30
PAGES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Address:
    """A URL and what to send along; neither is ever printed."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it: user, password, query."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def download(find: Callable[[], Address], target: Path, *, md5: str | None = None) -> bool:
    """Fetch a file; False where it is there already. ``find`` is asked anew before every try: signed URLs expire.

    What arrived before a kill is kept beside the target, and taken only if the server's file is the same. Raises
    AwsError where it cannot be fetched, has another MD5, or does not fit the disk.
    """
    if target.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, note = (target.with_name(f".{target.name}.{what}") for what in ("partial", "partial.json"))
    with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
        _fetch(find, target, file, note)
        os.fsync(file.fileno())
    if md5 is not None and (found := md5_of(partial)) != md5:
        partial.unlink()
        note.unlink(missing_ok=True)
        raise AwsError(f"{target.name}: what arrived has the MD5 {found}, not {md5}: it is fetched anew next time")
    os.replace(partial, target)
    note.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True


def _fetch(find: Callable[[], Address], target: Path, file: Any, note: Path) -> None:
    silent, problem = 0, ""
    while silent < TRIES:
        if silent:
            time.sleep(RETRY_SECONDS * 2 ** (silent - 1))
        before = file.seek(0, os.SEEK_END)
        address = find()
        try:
            if _fetch_rest(address, target, file, note):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                raise AwsError(f"{address.shown}: the server answered {error.code} {error.reason}") from None
            problem = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            problem = without_secrets(str(getattr(error, "reason", error))) or type(error).__name__
        silent = 1 if file.seek(0, os.SEEK_END) > before else silent + 1
    raise AwsError(f"{address.shown}: cannot be fetched ({problem}): run the command again, it goes on")


def _fetch_rest(address: Address, target: Path, file: Any, note: Path) -> bool:
    """What is missing of the file; whether all of it is there now."""
    position, known = file.seek(0, os.SEEK_END), _read(note)
    headers = {"User-Agent": "rebar", "Accept-Encoding": "identity", **address.headers}
    if position and known.get("version"):
        if position == known.get("size"):
            return True
        headers |= {"Range": f"bytes={position}-", "If-Range": known["version"]}
    request = urllib.request.Request(address.url, headers=headers)
    with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:
        if answer.headers.get_content_type() in PAGES:
            raise AwsError(
                f"{address.shown}: the server answered with a page, not a file: sign in there and take a new link"
            )
        if answer.status != 206:
            position = 0
            file.truncate(0)
        file.seek(position)
        length = answer.headers.get("Content-Length")
        size = position + int(length) if length else None
        etag = answer.headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
        note.write_text(json.dumps({"version": version, "size": size}))
        if size is not None:
            require_space(target.parent, size - position, target.name)
        progress = Progress(target.name, size or 0, position)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            progress.add(len(chunk))
        progress.end()
    return size is None or file.tell() == size


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raises AwsError where a folder's disk has not so many bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise AwsError(f"{folder} has {free / GIB:.1f} GiB free, {what} needs {needed / GIB:.1f} more")


def _read(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
